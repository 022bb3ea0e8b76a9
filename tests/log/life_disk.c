#include "life.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

/* ------------------------------------------------------------------------------------------------ files */

char *file_path(const struct life *life, const char *name)
{
    static char paths[4][sizeof life->folder + 256];
    static unsigned next;
    char *path = paths[next++ % array_count(paths)];
    snprintf(path, sizeof paths[0], "%s/%s", life->folder, name);
    return path;
}

static int file_open(const struct life *life, const char *name, int flags)
{
    int fd = open(file_path(life, name), flags | O_CLOEXEC, 0600);
    cr_assert_geq(fd, 0, "%s: %s", name, strerror(errno));
    return fd;
}

uint64_t file_size_of(const struct life *life, const char *name)
{
    struct stat facts;
    cr_assert_eq(stat(file_path(life, name), &facts), 0, "%s: %s", name, strerror(errno));
    return (uint64_t)facts.st_size;
}

bool file_there(const struct life *life, const char *name)
{
    return access(file_path(life, name), F_OK) == 0;
}

void file_peek(const struct life *life, const char *name, uint64_t offset, void *bytes, size_t length)
{
    int fd = file_open(life, name, O_RDONLY);
    memset(bytes, 0, length);
    cr_assert_geq(pread(fd, bytes, length, (off_t)offset), 0);
    close(fd);
}

void file_poke(const struct life *life, const char *name, uint64_t offset, const void *bytes, size_t length)
{
    int fd = file_open(life, name, O_WRONLY | O_CREAT);
    cr_assert_eq(pwrite(fd, bytes, length, (off_t)offset), (ssize_t)length);
    close(fd);
}

void file_flip(const struct life *life, const char *name, uint64_t offset, unsigned bit)
{
    uint8_t byte;
    file_peek(life, name, offset, &byte, 1);
    byte ^= (uint8_t)(1u << bit);
    file_poke(life, name, offset, &byte, 1);
}

void file_zero(const struct life *life, const char *name, uint64_t offset, uint64_t length)
{
    void *zeros = calloc(1, length);
    cr_assert_not_null(zeros);
    file_poke(life, name, offset, zeros, length);
    free(zeros);
}

void file_cut(const struct life *life, const char *name, uint64_t length)
{
    cr_assert_eq(truncate(file_path(life, name), (off_t)length), 0);
}

void file_delete(const struct life *life, const char *name)
{
    cr_assert_eq(unlink(file_path(life, name)), 0, "%s: %s", name, strerror(errno));
}

/* Blocks of zeros become holes: a copy costs what lies in the file, not its length. */
void file_copy(const struct life *from, const char *name, const struct life *to, const char *new_name)
{
    static _Alignas(16) uint8_t block[64 << 10];
    int in = file_open(from, name, O_RDONLY), out = file_open(to, new_name, O_RDWR | O_CREAT | O_TRUNC);
    off_t at = 0;
    for (ssize_t got; (got = read(in, block, sizeof block)) > 0; at += got)
        if (!all_zero(block, (size_t)got))
            cr_assert_eq(pwrite(out, block, (size_t)got, at), got);
    cr_assert_eq(ftruncate(out, at), 0);
    close(in);
    close(out);
}

void file_header_poke(const struct life *life, const char *name, struct segment_header *header)
{
    header->crc = crc32c(0, header, offsetof(struct segment_header, crc));
    file_poke(life, name, 0, header, sizeof *header);
}

static void each_file(const struct life *life, void (*visit)(const char *name, void *context), void *context)
{
    DIR *folder = opendir(life->folder);
    cr_assert_not_null(folder);
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;)
        if (entry->d_name[0] != '.')
            visit(entry->d_name, context);
    closedir(folder);
}

struct count {
    const char *ending;
    unsigned n;
};

static void count_one(const char *name, void *context)
{
    struct count *count = context;
    size_t n = strlen(name), e = strlen(count->ending);
    count->n += n >= e && strcmp(name + n - e, count->ending) == 0;
}

unsigned files_with(const struct life *life, const char *ending)
{
    struct count count = {.ending = ending};
    each_file(life, count_one, &count);
    return count.n;
}

struct digests {
    const struct life *life;
    uint64_t sum;
};

static void digest_one(const char *name, void *context)
{
    struct digests *d = context;
    struct sum_seed seed = {.digest = 7};
    struct stat facts;
    cr_assert_eq(stat(file_path(d->life, name), &facts), 0);
    size_t size = (size_t)facts.st_size;
    uint8_t *bytes = malloc(size + 256);
    cr_assert_not_null(bytes);
    file_peek(d->life, name, 0, bytes, size);
    int length = snprintf((char *)bytes + size, 256, "%s %lld.%ld %lld", name,
                          (long long)facts.st_mtim.tv_sec, facts.st_mtim.tv_nsec, (long long)facts.st_ino);
    d->sum += digest_of(seed, bytes, size + (size_t)length).low;
    free(bytes);
}

uint64_t folder_digest(const struct life *life)
{
    struct digests d = {.life = life};
    each_file(life, digest_one, &d);
    return d.sum;
}

struct copying {
    const struct life *from;
    struct life *to;
};

static void copy_one(const char *name, void *context)
{
    struct copying *c = context;
    file_copy(c->from, name, c->to, name);
}

void life_copy(struct life *life, const struct life *from)
{
    life_make(life);
    struct copying c = {from, life};
    each_file(from, copy_one, &c);
    memcpy(life->model, from->model, sizeof life->model);
    life->model_count = from->model_count;
    life->options.segment_bytes = from->options.segment_bytes;
    life->options.commit_align = from->options.commit_align;
}

/* -------------------------------------------------------------------------------------- the log in them */

struct scanning {
    const struct life *life;
    struct disk *disk;
};

static void scan_one(const char *name, void *context)
{
    struct scanning *s = context;
    if (strstr(name, ".segment") == NULL)
        return;
    struct disk_segment segment = {.size = file_size_of(s->life, name)};
    snprintf(segment.name, sizeof segment.name, "%.39s", name);
    file_peek(s->life, name, 0, &segment.header, sizeof segment.header);
    struct disk *disk = s->disk;
    cr_assert(disk->segment_count < MOST_SEGMENTS && disk->spare_count < MOST_SEGMENTS);
    if (segment.header.magic == SEGMENT_MAGIC)
        disk->segments[disk->segment_count++] = segment;
    else
        disk->spares[disk->spare_count++] = segment;
}

static int by_number(const void *a, const void *b)
{
    const struct disk_segment *x = a, *y = b;
    return x->header.number < y->header.number ? -1 : x->header.number > y->header.number;
}

static void scan_groups(const struct life *life, struct disk *disk, struct disk_segment *s)
{
    struct segment_identity identity = {.number = s->header.number,
                                        .epoch = s->header.epoch,
                                        .epoch_nonce = s->header.epoch_nonce,
                                        .block = s->header.block,
                                        .seed = seed_from_salt(s->header.salt)};
    uint64_t at = identity.block, limit = s->end != 0 ? s->end : s->size;
    uint8_t *bytes = malloc(s->size + sizeof(struct group_header));
    cr_assert_not_null(bytes);
    file_peek(life, s->name, 0, bytes, s->size);
    while (at < limit) {
        struct disk_group group = {.identity = identity};
        if (group_check_header(bytes + at, &identity, at, limit, &group.header) != GROUP_VALID ||
            group_check_body(bytes + at, &group.header, &identity) != GROUP_VALID)
            break;
        snprintf(group.file, sizeof group.file, "%s", s->name);
        cr_assert_lt(disk->group_count, array_count(disk->groups));
        disk->groups[disk->group_count++] = group;
        at += group.header.length;
    }
    if (s->end == 0)
        s->end = at;
    free(bytes);
}

void disk_scan(const struct life *life, struct disk *disk)
{
    *disk = (struct disk){0};
    struct scanning s = {life, disk};
    each_file(life, scan_one, &s);
    qsort(disk->segments, disk->segment_count, sizeof disk->segments[0], by_number);
    for (size_t i = 0; i < disk->segment_count; i++) {
        if (i + 1 < disk->segment_count)
            disk->segments[i].end = disk->segments[i + 1].header.previous_end;
        scan_groups(life, disk, &disk->segments[i]);
    }
}

const struct disk_segment *disk_newest(const struct disk *disk)
{
    cr_assert_gt(disk->segment_count, 0u);
    return &disk->segments[disk->segment_count - 1];
}

const struct disk_group *disk_last(const struct disk *disk)
{
    cr_assert_gt(disk->group_count, 0u);
    return &disk->groups[disk->group_count - 1];
}

void disk_forge_last(const struct life *life, void (*change)(struct frame_header *frame))
{
    static struct disk disk;
    static uint8_t bytes[GROUP_MAX];
    disk_scan(life, &disk);
    const struct disk_group *g = disk_last(&disk);
    file_peek(life, g->file, g->header.offset, bytes, g->header.length);
    uint32_t at = sizeof(struct group_header);
    for (uint32_t i = 0; i < g->header.frames; i++) {
        struct frame_header *frame = (struct frame_header *)(void *)(bytes + at);
        at += frame->header_bytes + frame->payload_bytes;
        change(frame);
        frame_fill(frame, g->identity.seed);
    }
    struct group_facts facts = {.number = g->header.number,
                                .offset = g->header.offset,
                                .durable_upto = g->header.durable_upto,
                                .time_ns = g->header.time_ns,
                                .previous = g->header.previous_digest,
                                .used = g->header.used,
                                .frames = g->header.frames};
    group_fill(bytes, &g->identity, &facts);
    file_poke(life, g->file, g->header.offset, bytes, g->header.length);
}
