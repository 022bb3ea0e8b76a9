#include "life.h"

#include "../../broker/io/folder.h"

#include <ftw.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#define LIMIT_NS   (60 * SECOND)
#define MOST_LIVES 8u

static struct life *lives[MOST_LIVES];

static int64_t clock_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * SECOND + now.tv_nsec;
}

/* ------------------------------------------------------------------------------------- the io of a life */

static struct life *life_of(const struct io *io)
{
    for (unsigned i = 0; i < MOST_LIVES; i++)
        if (lives[i] != NULL && lives[i]->io == io)
            return lives[i];
    check_bug(false);
    return NULL;
}

static void name_of_file(const struct io_file *file, char name[40])
{
    char link[64], path[512];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file->fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length > 0 ? length : 0] = 0;
    const char *base = strrchr(path, '/');
    snprintf(name, 40, "%.39s", base != NULL ? base + 1 : path);
}

static void recording_submit(struct io *io, struct io_op *op)
{
    struct life *life = life_of(io);
    if (life->op_count == life->op_room) {
        life->op_room = life->op_room * 2 + 256;
        life->ops = realloc(life->ops, life->op_room * sizeof *life->ops);
        check_bug(life->ops != NULL);
    }
    struct op_record *record = &life->ops[life->op_count++];
    *record = (struct op_record){
        .kind = op->kind, .background = op->background, .offset = op->offset, .length = op->length};
    if (op->name != NULL)
        snprintf(record->name, sizeof record->name, "%s", op->name);
    else if (op->file != NULL)
        name_of_file(op->file, record->name);
    if (op->new_name != NULL)
        snprintf(record->new_name, sizeof record->new_name, "%s", op->new_name);
    struct plan *plan = &life->plans[op->kind], gone = {.error = -EIO};
    bool fails = false;
    if (plan->everything || !op->background) {
        fails = plan->seen < 64 && (plan->failing >> plan->seen & 1) != 0;
        plan->seen++;
    }
    if (life->dies_at != 0 && life->op_count >= life->dies_at) {
        plan = &gone;
        fails = true;
    }
    if (fails)
        io_fault_set(io, op->kind,
                     &(struct fault){.action = plan->after ? FAULT_FAIL_AFTER : FAULT_FAIL_BEFORE,
                                     .error = -plan->error,
                                     .nth = 1});
    life->inner->submit(io, op);
    if (fails)
        io_fault_clear(io, op->kind);
}

static int64_t moved_now(struct io *io)
{
    struct life *life = life_of(io);
    return life->inner->now(io) + life->ahead;
}

static int failing_random(struct io *io, void *buffer, size_t length)
{
    struct life *life = life_of(io);
    return life->random_error != 0 ? life->random_error : life->inner->random(io, buffer, length);
}

/* A wait for a lock moves the clock and nothing else. */
static void moving_sleep(struct io *io, int64_t ns)
{
    struct life *life = life_of(io);
    life->ahead += ns;
    if (life->on_sleep != NULL)
        life->on_sleep(life);
}

void life_open(struct life *life)
{
    struct io_real_options options = {
        .folder = life->folder, .backend = life->backend, .watch_fd = -1, .allow_direct = true};
    struct io *real;
    struct error err = {0};
    if (life->io != NULL)
        return;
    int error = io_real_create(&options, &real, NULL, &err);
    if (error == -EOPNOTSUPP && life->backend == IO_BACKEND_URING)
        cr_skip("SKIPPED: %s\n", err.text);
    cr_assert_eq(error, 0, "%s", err.text);
    cr_assert_eq(io_fault_create(real, &life->io), 0);
    life->inner = life->io->functions;
    life->functions = *life->inner;
    life->functions.submit = recording_submit;
    life->functions.now = moved_now;
    life->functions.random = failing_random;
    life->functions.sleep = moving_sleep;
    life->io->functions = &life->functions;
    life->op_count = 0;
    memset(life->plans, 0, sizeof life->plans);
}

void life_close(struct life *life)
{
    if (life->io == NULL)
        return;
    life->io->functions = life->inner;
    life->inner->destroy(life->io);
    life->io = NULL;
    while (life->sents != NULL) {
        struct sent *sent = life->sents;
        life->sents = sent->next;
        free(sent->payload);
        free(sent->records);
        free(sent);
    }
}

/* ------------------------------------------------------------------------------------------------ lives */

static void hear(void *context, enum say priority, const char *line)
{
    struct life *life = context;
    static const char *const names[] = {"error", "warning", "notice", "debug"};
    size_t length = strlen(line) + 16;
    life->said = realloc(life->said, life->said_length + length);
    check_bug(life->said != NULL);
    life->said_length +=
        (size_t)snprintf(life->said + life->said_length, length, "%s: %s\n", names[priority], line);
}

bool life_said(const struct life *life, const char *words)
{
    return life->said != NULL && strstr(life->said, words) != NULL;
}

static const char *base_folder;

void life_use_memory(void)
{
    struct statvfs facts;
    if (statvfs("/dev/shm", &facts) == 0 && access("/dev/shm", W_OK) == 0 &&
        (uint64_t)facts.f_bavail * facts.f_frsize > 512u << 20)
        base_folder = "/dev/shm";
}

void life_make(struct life *life)
{
    *life = (struct life){.backend = IO_BACKEND_PWRITE};
    const char *base = base_folder != NULL ? base_folder : getenv("TMPDIR");
    snprintf(life->folder, sizeof life->folder, "%.40s/walrus-log-XXXXXX",
             base != NULL && strlen(base) < 40 ? base : "/tmp");
    cr_assert_not_null(mkdtemp(life->folder), "mkdtemp: %s", strerror(errno));
    life->options = (struct log_options){
        .segment_bytes = SEGMENT_MIN, .prepare_only_spare = true, .say = hear, .context = life};
    for (unsigned i = 0; i < MOST_LIVES; i++) {
        if (lives[i] == NULL) {
            lives[i] = life;
            return;
        }
    }
    cr_assert_fail("too many lives at once");
}

static int remove_one(const char *path, const struct stat *facts, int kind, struct FTW *where)
{
    (void)facts, (void)kind, (void)where;
    return remove(path);
}

void life_remove(struct life *life)
{
    if (life->log != NULL)
        life_crash(life);
    life_close(life);
    nftw(life->folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    free(life->ops);
    free(life->said);
    for (unsigned i = 0; i < MOST_LIVES; i++)
        if (lives[i] == life)
            lives[i] = NULL;
    *life = (struct life){0};
}

int life_try_start(struct life *life)
{
    life_open(life);
    cr_assert_null(life->log);
    life->options.io = life->io;
    life->error = (struct error){0};
    free(life->said);
    life->said = NULL;
    life->said_length = 0;
    int error = log_start(&life->options, &life->log, &life->error);
    if (error != 0) {
        cr_assert_eq(life->error.code, error, "code %d, words \"%s\"", error, life->error.text);
        life->log = NULL;
        cr_assert_eq(life->io->inflight, 0u, "%u ops in flight after a refused start", life->io->inflight);
        life_close(life);
    }
    return error;
}

void life_start(struct life *life)
{
    int error = life_try_start(life);
    cr_assert_eq(error, 0, "the start was refused: %s", life->error.text);
}

void life_refused(struct life *life, int code, const char *words)
{
    int error = life_try_start(life);
    cr_assert_eq(error, code, "the start said %d (%s), not %d", error, life->error.text, code);
    cr_assert_not_null(strstr(life->error.text, words), "\"%s\" lacks \"%s\"", life->error.text, words);
    cr_assert_not_null(strstr(life->error.text, life->folder), "\"%s\" does not name the store",
                       life->error.text);
}

void life_stop(struct life *life)
{
    int error = log_stop(life->log, &life->error);
    life->log = NULL;
    cr_assert_eq(error, 0, "%s", life->error.text);
    life_close(life);
}

void life_crash(struct life *life)
{
    if (life->log == NULL)
        return;
    for (int kind = 0; kind < IO_KIND_COUNT; kind++) {
        io_fault_hold(life->io, (enum io_kind)kind, false);
        io_fault_release(life->io, (enum io_kind)kind, UINT32_MAX);
    }
    log_abandon(life->log);
    life->log = NULL;
    life_close(life);
}

void life_turn(struct life *life)
{
    log_turn(life->log);
    if (life->io->inflight > 0)
        io_wait(life->io, 20 * MILLISECOND);
}

static bool unanswered(const struct life *life)
{
    for (const struct sent *sent = life->sents; sent != NULL; sent = sent->next)
        if (sent->refused == 0 && !sent->done)
            return true;
    return false;
}

void life_settle(struct life *life)
{
    int64_t limit = clock_now() + LIMIT_NS;
    while (unanswered(life) && log_failed(life->log) == NULL) {
        life_turn(life);
        cr_assert_lt(clock_now(), limit, "a write is not answered; the log said:\n%s",
                     life->said != NULL ? life->said : "nothing");
    }
}

void life_quiet(struct life *life)
{
    int64_t limit = clock_now() + LIMIT_NS;
    for (;;) {
        log_turn(life->log); /* what has ended may be followed by more: only a turn tells */
        if (log_failed(life->log) != NULL || (life->io->inflight == 0 && !log_busy(life->log)))
            return;
        io_wait(life->io, 20 * MILLISECOND);
        cr_assert_lt(clock_now(), limit, "the log does not come to rest");
    }
}

void life_until_held(struct life *life, enum io_kind kind, unsigned count)
{
    int64_t limit = clock_now() + LIMIT_NS;
    while (io_fault_held(life->io, kind) < count) {
        life_turn(life);
        cr_assert_lt(clock_now(), limit, "%u ops are held, not %u", io_fault_held(life->io, kind), count);
    }
}

struct log_stats life_stats(const struct life *life)
{
    struct log_stats stats;
    log_stats(life->log, &stats);
    return stats;
}

/* ---------------------------------------------------------------------------------------------- content */

void entry_fill(uint8_t *data, uint64_t length, const char *topic, uint64_t sequence)
{
    uint64_t word = sequence * UINT64_C(0x9e3779b97f4a7c15) + length;
    for (; *topic != 0; topic++)
        word = (word ^ (uint8_t)*topic) * UINT64_C(0x100000001b3);
    for (uint64_t i = 0; i < length; i++) {
        if (i % 8 == 0)
            word = word * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        data[i] = (uint8_t)(word >> (8 * (7 - i % 8)));
    }
}

bool entry_right(const uint8_t *data, uint64_t length, const char *topic, uint64_t sequence)
{
    uint8_t *want = malloc(length + 1);
    check_bug(want != NULL);
    entry_fill(want, length, topic, sequence);
    bool right = memcmp(want, data, length) == 0;
    free(want);
    return right;
}

static struct model_topic *model_find(struct life *life, const char *name)
{
    for (size_t i = 0; i < life->model_count; i++)
        if (strcmp(life->model[i].name, name) == 0)
            return &life->model[i];
    cr_assert_lt(life->model_count, MODEL_TOPICS);
    struct model_topic *topic = &life->model[life->model_count++];
    snprintf(topic->name, sizeof topic->name, "%s", name);
    topic->next = 1;
    return topic;
}

uint64_t life_next(struct life *life, const char *topic)
{
    return model_find(life, topic)->next;
}

void life_committed(struct life *life, const char *topic, uint32_t entries)
{
    model_find(life, topic)->next += entries;
}

/* ----------------------------------------------------------------------------------------------- writes */

struct topic *life_topic(struct life *life, const char *name)
{
    struct topic *topic;
    cr_assert_eq(log_topic(life->log, name, strlen(name), 0, NO_UID, true, &topic), 0);
    return topic;
}

static void write_done(struct write *write)
{
    struct sent *sent = (struct sent *)write;
    static unsigned order;
    cr_assert(!sent->done, "answered twice");
    sent->done = true;
    sent->order = ++order;
    log_topic_release(sent->life->log, write->topic);
}

int life_again(struct sent *sent)
{
    sent->refused = log_write(sent->life->log, &sent->write);
    return sent->refused;
}

struct sent *life_send(struct life *life, const struct request *r)
{
    struct sent *sent = calloc(1, sizeof *sent);
    uint32_t padded = (uint32_t)align_up(r->bytes, PAYLOAD_ALIGN);
    cr_assert_not_null(sent);
    sent->life = life;
    sent->payload = calloc(1, (size_t)padded * r->entries + 16);
    sent->records = calloc(r->entries + 1, sizeof *sent->records);
    cr_assert(sent->payload != NULL && sent->records != NULL);
    uint64_t from = r->from != 0 ? r->from : life_next(life, r->name);
    for (uint32_t i = 0; i < r->entries; i++) {
        entry_fill(sent->payload + (size_t)i * padded, r->bytes, r->name, from + i);
        sent->records[i] = (struct entry_record){.length = r->bytes, .type = (uint8_t)(from + i)};
    }
    if (r->data != NULL)
        memcpy(sent->payload, r->data, r->bytes);
    if (r->goes_on)
        sent->records[r->entries - 1].flags = ENTRY_CONTINUES;
    struct topic *topic;
    cr_assert_eq(log_topic(life->log, r->name, strlen(r->name), r->topic_level, NO_UID, true, &topic), 0);
    sent->write = (struct write){
        .kind = r->kind,
        .first = r->first,
        .last = r->last,
        .level = r->level,
        .topic = topic,
        .owner = r->owner,
        .stream = r->stream,
        .payload = sent->payload,
        .records = sent->records,
        .entries = r->entries,
        .payload_bytes = padded * r->entries,
        .producer = r->producer,
        .number = r->number,
        .done = write_done,
    };
    if (r->stream != NULL && r->stream->topic == NULL)
        r->stream->topic = topic;
    sent->next = life->sents;
    life->sents = sent;
    life_again(sent);
    return sent;
}

void life_put(struct life *life, const char *topic, uint32_t entries, uint32_t bytes)
{
    struct sent *sent = SEND(life, .name = topic, .kind = WRITE_BATCH, .entries = entries, .bytes = bytes);
    int64_t limit = clock_now() + LIMIT_NS;
    while (sent->refused == -EAGAIN) {
        life_turn(life);
        life_again(sent);
        cr_assert_lt(clock_now(), limit, "-EAGAIN does not end");
    }
    cr_assert_eq(sent->refused, 0, "refused: %d", sent->refused);
    life_settle(life);
    cr_assert(sent->done, "not answered: %s",
              log_failed(life->log) != NULL ? log_failed(life->log)->text : "");
    cr_assert_eq(sent->write.result, 0, "answered %d", sent->write.result);
    cr_assert_eq(sent->write.committed, entries);
    cr_assert_eq(sent->write.first_sequence, life_next(life, topic));
    life_committed(life, topic, entries);
}
