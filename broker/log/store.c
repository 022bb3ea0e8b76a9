/* store.c: the store folder: what is in it, whose it is, and the blocking helpers of start and stop.
 *
 *   1. List the names. A folder that is neither empty nor a store is refused before anything is touched.
 *   2. Claim it (record lock on walrus.claim: it names a living holder and goes with the process).
 *   3. Empty: write the identity (tmp, flush, rename, folder flush). Else read it.
 *   4. The segment files that the start must look into are opened and locked one by one. A killed broker's
 *      writes still land for a while; the lock on the file they go to outlives the broker, so waiting for it
 *      waits for them (G11). Then they are flushed: the start decides only on bytes that are durable (G12).
 *
 * Names: walrus.store walrus.claim checkpoint-0 checkpoint-1 NNNNNNNN.segment NNNNNNNN.index; *.new are
 * unfinished and removed. */
#include "internal.h"

#define CLAIM_FILE "walrus.claim"
#define STORE_NEW  "walrus.store.new"
#define LOST_BYTES (512u << 10)
#define LOCK_POLL  (10 * INT64_C(1000000))

/* --------------------------------------------------------------------------------------- blocking helpers */

int64_t io_simple(struct io *io, enum io_kind kind, struct io_file *file, const char *name,
                  const char *new_name)
{
    struct io_op op = {.kind = kind, .background = true, .file = file, .name = name, .new_name = new_name};
    return io_run(io, &op);
}

int io_open_file(struct io *io, const char *name, bool create, uint32_t flags, struct io_file **file)
{
    struct io_op op = {
        .kind = create ? IO_CREATE : IO_OPEN, .background = true, .flags = flags, .name = name};
    int error = (int)io_run(io, &op);
    if (error == 0)
        *file = op.file;
    return error;
}

int64_t io_read_at(struct io *io, struct io_file *file, void *buffer, uint64_t offset, uint64_t length)
{
    uint64_t done = 0;
    while (done < length) {
        struct io_op op = {.kind = IO_READ,
                           .file = file,
                           .buffer = (uint8_t *)buffer + done,
                           .offset = offset + done,
                           .length = length - done};
        int64_t got = io_run(io, &op);
        if (got < 0)
            return got;
        done += (uint64_t)got;
        if (got == 0 || (uint64_t)got % io->functions->file_align(io, file) != 0) {
            if (offset + done < io->functions->file_size(io, file))
                return -EIO; /* it ended, and the file does not: nothing is known of the rest (G14) */
            break;
        }
    }
    return (int64_t)done;
}

int io_write_full(struct io *io, struct io_file *file, void *buffer, uint64_t offset, uint64_t length)
{
    uint64_t done = 0;
    while (done < length) {
        struct io_op op = {.kind = IO_WRITE,
                           .file = file,
                           .buffer = (uint8_t *)buffer + done,
                           .offset = offset + done,
                           .length = length - done};
        int64_t put = io_run(io, &op);
        if (put < 0)
            return (int)put;
        if (put == 0 || (uint64_t)put % io->functions->file_align(io, file) != 0)
            return -EIO;
        done += (uint64_t)put;
    }
    return 0;
}

int io_load(struct io *io, const char *name, uint64_t most, uint8_t **bytes, size_t *size)
{
    struct io_file *file;
    *bytes = NULL;
    int error = io_open_file(io, name, false, IO_FILE_BUFFERED | IO_FILE_READ_ONLY, &file);
    if (error != 0)
        return error;
    uint64_t length = io->functions->file_size(io, file);
    *size = (size_t)length;
    if (length > most)
        error = -EFBIG;
    if (error == 0 && (*bytes = malloc(length + 1)) == NULL)
        error = -ENOMEM;
    if (error == 0) {
        int64_t got = io_read_at(io, file, *bytes, 0, length);
        if (got < 0)
            error = (int)got;
        else
            *size = (size_t)got;
    }
    if (error != 0) {
        free(*bytes);
        *bytes = NULL;
    }
    (void)io_simple(io, IO_CLOSE, file, NULL, NULL);
    return error;
}

/* ------------------------------------------------------------------------------------------------ names */

static bool number_name(const char *name, const char *suffix, uint64_t *number)
{
    char *end;
    if (name[0] < '0' || name[0] > '9')
        return false;
    errno = 0;
    *number = strtoull(name, &end, 10);
    return errno == 0 && end - name >= 8 && strcmp(end, suffix) == 0;
}

static bool ends_with(const char *name, const char *suffix)
{
    size_t n = strlen(name), s = strlen(suffix);
    return n >= s && strcmp(name + n - s, suffix) == 0;
}

static int by_file_number(const void *a, const void *b)
{
    const struct store_file *x = a, *y = b;
    return x->file_number < y->file_number ? -1 : x->file_number > y->file_number;
}

void store_list_free(struct store_list *list)
{
    free(list->files);
    free(list->left_over);
    *list = (struct store_list){0};
}

static void sort_entry(struct store_list *list, const struct io_entry *e)
{
    uint64_t number;
    bool ours = number_name(e->name, ".segment", &number) || strcmp(e->name, STORE_FILE) == 0 ||
                strcmp(e->name, "checkpoint-0") == 0 || strcmp(e->name, "checkpoint-1") == 0;
    if (ours && !e->regular)
        snprintf(list->not_a_file, sizeof list->not_a_file, "%.60s", e->name);
    if (strcmp(e->name, STORE_FILE) == 0) {
        list->has_store = true;
        list->empty = false;
    } else if (e->regular && number_name(e->name, ".segment", &number)) {
        list->files[list->count++] = (struct store_file){.file_number = number, .size = e->size};
        list->highest_file = max_u64(list->highest_file, number);
        list->empty = false;
    } else if (e->regular && (number_name(e->name, ".new", &number) || strcmp(e->name, CHECKPOINT_NEW) == 0 ||
                              strcmp(e->name, INDEX_NEW) == 0 || strcmp(e->name, STORE_NEW) == 0)) {
        list->left_over[list->left_over_count++] = *e;
        if (ends_with(e->name, ".new") && number_name(e->name, ".new", &number))
            list->highest_file = max_u64(list->highest_file, number);
    } else if (number_name(e->name, ".index", &number) || strcmp(e->name, "checkpoint-0") == 0 ||
               strcmp(e->name, "checkpoint-1") == 0 || strcmp(e->name, CLAIM_FILE) == 0 ||
               strcmp(e->name, "lost+found") == 0) {
        return;
    } else {
        list->empty = false;
        snprintf(list->foreign, sizeof list->foreign, "%.60s", e->name);
    }
}

int store_list_read(struct io *io, struct store_list *list, struct error *err)
{
    struct io_entry *entries;
    size_t count;
    *list = (struct store_list){.empty = true};
    int error = io->functions->list(io, &entries, &count);
    if (error != 0)
        return error_set(err, error, "store %s: cannot list the folder: %s", io->folder, strerror(-error));
    list->files = calloc(count + 1, sizeof *list->files);
    list->left_over = calloc(count + 1, sizeof *list->left_over);
    if (list->files == NULL || list->left_over == NULL) {
        free(entries);
        store_list_free(list);
        return error_set(err, -ENOMEM, "store %s: out of memory", io->folder);
    }
    for (size_t i = 0; i < count; i++)
        sort_entry(list, &entries[i]);
    free(entries);
    if (list->not_a_file[0] != 0) {
        error_set(
            err, -EBADMSG,
            "store %s: %s is not a regular file; put the file itself there (a store lies in one folder)",
            io->folder, list->not_a_file);
        store_list_free(list);
        return -EBADMSG;
    }
    if (list->count > 0)
        qsort(list->files, list->count, sizeof *list->files, by_file_number);
    return 0;
}

struct store_file *store_find_file(const struct store_list *list, uint64_t file_number)
{
    struct store_file key = {.file_number = file_number};
    return list->count == 0 ? NULL : bsearch(&key, list->files, list->count, sizeof key, by_file_number);
}

void store_id_format(const uint8_t store_id[16], char text[33])
{
    for (size_t i = 0; i < 16; i++)
        snprintf(text + 2 * i, 3, "%02x", store_id[i]);
}

/* ----------------------------------------------------------------------------------------------- identity */

static int not_a_store(struct io *io, const struct store_list *list, struct error *err)
{
    return error_set(err, -ENOTEMPTY,
                     "store %s: the folder is not empty and not a Walrus store (no " STORE_FILE
                     "; it holds \"%s\"); give an empty folder",
                     io->folder, list->foreign[0] != 0 ? list->foreign : "segment files");
}

int store_identity_read(struct io *io, uint8_t store_id[16], struct error *err)
{
    uint8_t *bytes;
    size_t size;
    struct store_header header;
    int error = io_load(io, STORE_FILE, 1 << 20, &bytes, &size);
    if (error != 0)
        return error_set(err, error, "store %s: cannot read " STORE_FILE ": %s", io->folder,
                         strerror(-error));
    memset(&header, 0, sizeof header);
    memcpy(&header, bytes, size < sizeof header ? size : sizeof header);
    free(bytes);
    if (header.magic == STORE_MAGIC && header.version > FORMAT_VERSION)
        return error_set(err, -EPROTONOSUPPORT,
                         "store %s: it has format version %u, this program knows %u; use a newer walrusd",
                         io->folder, header.version, FORMAT_VERSION);
    bool sound =
        header.magic == STORE_MAGIC && header.crc == crc32c(0, &header, offsetof(struct store_header, crc));
    if (sound && header.version < FORMAT_VERSION)
        return error_set(err, -EPROTONOSUPPORT,
                         "store %s: it has format version %u, this program knows %u; use the walrusd that "
                         "wrote it",
                         io->folder, header.version, FORMAT_VERSION);
    if (!sound)
        return error_set(err, -EBADMSG,
                         "store %s: " STORE_FILE " is damaged; restore it from a backup (it never changes)",
                         io->folder);
    memcpy(store_id, header.store_id, 16);
    return 0;
}

static int identity_create(struct log *log, struct error *err)
{
    struct io *io = log->io;
    struct store_header *header = calloc(1, BLOCK_MIN);
    struct io_file *file = NULL;
    if (header == NULL)
        return error_set(err, -ENOMEM, "store %s: out of memory", io->folder);
    header->magic = STORE_MAGIC;
    header->version = FORMAT_VERSION;
    header->created_ns = (uint64_t)io->functions->wall(io);
    int error = io->functions->random(io, header->store_id, sizeof header->store_id);
    header->crc = crc32c(0, header, offsetof(struct store_header, crc));
    if (error == 0) {
        (void)io_simple(io, IO_UNLINK, NULL, STORE_NEW, NULL);
        error = io_open_file(io, STORE_NEW, true, IO_FILE_BUFFERED, &file);
    }
    if (error == 0)
        error = io_write_full(io, file, header, 0, BLOCK_MIN);
    if (error == 0)
        error = (int)io_simple(io, IO_FLUSH, file, NULL, NULL);
    if (file != NULL)
        (void)io_simple(io, IO_CLOSE, file, NULL, NULL);
    if (error == 0)
        error = (int)io_simple(io, IO_RENAME, NULL, STORE_NEW, STORE_FILE);
    if (error == 0)
        error = (int)io_simple(io, IO_SYNC_DIRECTORY, NULL, NULL, NULL);
    free(header);
    if (error != 0)
        return error_set(err, error, "store %s: cannot make a new store: %s", io->folder, strerror(-error));
    return 0;
}

/* A holder that was killed, but whose writes are still in the device, is waited for (G11). */
static int claim(struct log *log, int64_t *holder)
{
    struct io *io = log->io;
    int64_t give_up_at = io_now(io) + log->options.lock_wait_ns;
    bool said = false;
    int error;
    while ((error = io->functions->claim(io, CLAIM_FILE, holder)) == -EINPROGRESS &&
           io_now(io) < give_up_at) {
        if (!said)
            log_say(log, SAY_NOTICE, "waiting for the I/O of a dead predecessor, process %lld",
                    (long long)*holder);
        said = true;
        io->functions->sleep(io, LOCK_POLL);
    }
    return error;
}

int store_open(struct log *log, struct store_list *list, struct error *err)
{
    struct io *io = log->io;
    int error = store_list_read(io, list, err);
    if (error != 0)
        return error;
    if (!list->has_store && !list->empty) {
        error = not_a_store(io, list, err);
        store_list_free(list);
        return error;
    }
    store_list_free(list);
    int64_t holder = 0;
    error = claim(log, &holder);
    if (error == -EINPROGRESS)
        return error_set(err, -ETIMEDOUT, "store %s: process %lld was killed, but its I/O does not end",
                         io->folder, (long long)holder);
    if (error == -EWOULDBLOCK)
        return error_set(
            err, -EBUSY,
            "store %s: it is held by process %lld; stop that broker or choose another --data-dir", io->folder,
            (long long)holder);
    if (error != 0)
        return error_set(
            err, error, "store %s: cannot claim it (" CLAIM_FILE "): %s%s", io->folder, strerror(-error),
            error == -EROFS || error == -EACCES ? "; the broker must be able to write there" : "");
    error = store_list_read(io, list, err);
    if (error == 0 && !list->has_store)
        error = list->empty ? identity_create(log, err) : not_a_store(io, list, err);
    if (error == 0)
        error = store_identity_read(io, log->store_id, err);
    if (error != 0)
        store_list_free(list);
    else
        store_id_format(log->store_id, log->store_id_text);
    return error;
}

/* ------------------------------------------------------------------------------------------ segment files */

const char *segment_header_fault(const struct segment_header *h, const uint8_t store_id[16],
                                 uint64_t file_number)
{
    if (h->magic != SEGMENT_MAGIC || h->crc != crc32c(0, h, offsetof(struct segment_header, crc)))
        return "its header is damaged";
    if (h->version != FORMAT_VERSION)
        return "it has another format version";
    if (memcmp(h->store_id, store_id, sizeof h->store_id) != 0)
        return "it belongs to another store";
    if (h->file != file_number)
        return "it is a copy of another file, or was renamed";
    if (!is_power_of_two(h->block) || h->block < BLOCK_MIN || h->block > BLOCK_MAX || h->number == 0 ||
        h->epoch == 0 || h->length < h->block || h->length > SEGMENT_MAX || h->previous_number >= h->number ||
        h->number > UINT64_MAX / 2 || h->epoch >= UINT32_MAX || h->first_group == 0 ||
        h->first_group > UINT64_MAX / 2 || (h->previous_end == 0) != (h->previous_number == 0) ||
        h->previous_end % BLOCK_MIN != 0 || h->previous_end > SEGMENT_MAX ||
        !all_zero(h->reserved, sizeof h->reserved))
        return "its header makes no sense";
    return NULL;
}

void segment_header_fill(struct segment_header *header)
{
    header->crc = crc32c(0, header, offsetof(struct segment_header, crc));
}

struct segment_identity segment_identity_of(const struct segment_header *h)
{
    return (struct segment_identity){
        .number = h->number,
        .epoch = h->epoch,
        .epoch_nonce = h->epoch_nonce,
        .block = h->block,
        .seed = seed_from_salt(h->salt),
    };
}

int store_header_read(struct io *io, struct store_file *f, const uint8_t store_id[16], uint8_t *block,
                      struct error *err)
{
    int64_t got = io_read_at(io, f->file, block, 0, BLOCK_MIN);
    if (got < 0)
        return error_set(err, (int)got, "store %s: cannot read the header of file " SEGMENT_FILE ": %s",
                         io->folder, (unsigned long long)f->file_number, strerror((int)-got));
    if (got < (int64_t)sizeof f->header) {
        f->blank = true; /* a file that was never finished: no group was ever in it */
        return 0;
    }
    memcpy(&f->header, block, sizeof f->header);
    f->blank = all_zero(block, sizeof f->header) || f->header.magic == SEGMENT_VOID;
    if (f->blank)
        return 0;
    const char *fault = segment_header_fault(&f->header, store_id, f->file_number);
    f->valid = fault == NULL;
    /* A header that was written whole but is not one of this file at this place is no torn write: say so. */
    if (!f->valid && f->header.magic == SEGMENT_MAGIC &&
        f->header.crc == crc32c(0, &f->header, offsetof(struct segment_header, crc)))
        return error_set(err, -EBADMSG,
                         "store %s: file " SEGMENT_FILE ": %s; move it out of the folder, or restore it",
                         io->folder, (unsigned long long)f->file_number, fault);
    return 0;
}

static bool looks_like_group(const uint8_t *bytes, uint64_t at, struct group_header *g)
{
    memcpy(g, bytes, sizeof *g);
    return g->magic == GROUP_MAGIC && g->offset == at && g->length != 0 && g->length <= GROUP_MAX &&
           g->length % BLOCK_MIN == 0;
}

/* From one group to the next, until one says that `next_group` was durable. */
static int lost_behind(struct io *io, const struct store_file *f, uint8_t *buffer, uint64_t at,
                       uint64_t next_group, uint64_t *lost)
{
    for (unsigned steps = 0; steps < 64 && at < f->size; steps++) {
        struct group_header g;
        int64_t got = io_read_at(io, f->file, buffer, at, BLOCK_MIN);
        if (got < 0)
            return (int)got;
        if (got < (int64_t)sizeof g || !looks_like_group(buffer, at, &g))
            return 0;
        if (g.durable_upto >= next_group) {
            *lost = g.durable_upto;
            return 0;
        }
        at += g.length;
    }
    return 0;
}

/* Any group where the first two may begin. */
static int lost_anywhere(struct io *io, const struct store_file *f, uint8_t *buffer, uint64_t *lost)
{
    uint64_t end = min_u64(f->size, GROUP_MAX + 2 * BLOCK_MAX);
    for (uint64_t at = BLOCK_MIN; at < end; at += LOST_BYTES) {
        int64_t got = io_read_at(io, f->file, buffer, at, min_u64(LOST_BYTES, align_up(end - at, BLOCK_MIN)));
        if (got < 0)
            return (int)got;
        for (uint64_t i = 0; i + sizeof(struct group_header) <= (uint64_t)got; i += BLOCK_MIN) {
            struct group_header g;
            if (looks_like_group(buffer + i, at + i, &g)) {
                *lost = g.number;
                return 0;
            }
        }
    }
    return 0;
}

int store_lost_group(struct io *io, const struct store_file *f, uint8_t *buffer, uint64_t next_group,
                     uint64_t *lost)
{
    *lost = 0;
    if (next_group == 0)
        return lost_anywhere(io, f, buffer, lost);
    int error = 0;
    for (uint64_t at = BLOCK_MIN; at <= BLOCK_MAX && error == 0 && *lost == 0; at *= 2)
        error = lost_behind(io, f, buffer, at, next_group, lost);
    return error;
}

int store_file_open(struct log *log, struct store_file *f, uint8_t *block, int64_t give_up_at,
                    struct error *err)
{
    struct io *io = log->io;
    char name[32];
    snprintf(name, sizeof name, SEGMENT_FILE, (unsigned long long)f->file_number);
    int error = io_open_file(io, name, false, 0, &f->file);
    if (error != 0)
        return error_set(err, error, "store %s: cannot open %s: %s", io->folder, name, strerror(-error));
    bool said = false;
    while ((error = io->functions->lock(io, f->file)) == -EWOULDBLOCK) {
        if (!said)
            log_say(log, SAY_NOTICE, "waiting for the I/O of a dead predecessor on %s", name);
        said = true;
        if (io_now(io) >= give_up_at)
            return error_set(err, -ETIMEDOUT,
                             "store %s: %s is still locked: the I/O of a killed broker does not end, or "
                             "another program holds the file",
                             io->folder, name);
        io->functions->sleep(io, LOCK_POLL);
    }
    if (error != 0)
        return error_set(err, error, "store %s: cannot lock %s: %s", io->folder, name, strerror(-error));
    error = (int)io_simple(io, IO_FLUSH, f->file, NULL, NULL);
    if (error != 0)
        return error_set(
            err, error,
            "store %s: cannot flush %s: %s; nothing was decided, start again when the device is well",
            io->folder, name, strerror(-error));
    f->size = io->functions->file_size(io, f->file);
    return store_header_read(io, f, log->store_id, block, err);
}
