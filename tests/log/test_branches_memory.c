/* Memory that is not there, once, at each place where the log asks for some.
 *
 * One story is told again and again, with the 1st, the 2nd, the 3rd ... allocation failing, until none is
 * left: a store is made, written, closed in the middle, found again, read from its closed segments, checked.
 * Whatever fails is refused with its words and works when it is tried again, or the log fails and the next
 * start has everything that was answered. */
#include "life.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

static struct life life;
static struct watermark watermarks[8];
static uint64_t allocations, failing; /* the failing-th allocation fails; 0: none */
static uint64_t in_story;             /* allocations that the story made */
static const int A;

static bool allocation_fails(void)
{
    return ++allocations == failing;
}

void *failing_malloc(size_t size);
void *failing_calloc(size_t count, size_t size);
void *failing_realloc(void *old, size_t size);
void *failing_aligned_alloc(size_t alignment, size_t size);

void *failing_malloc(size_t size)
{
    return allocation_fails() ? NULL : malloc(size);
}

void *failing_calloc(size_t count, size_t size)
{
    return allocation_fails() ? NULL : calloc(count, size);
}

void *failing_realloc(void *old, size_t size)
{
    return allocation_fails() ? NULL : realloc(old, size);
}

void *failing_aligned_alloc(size_t alignment, size_t size)
{
    return allocation_fails() ? NULL : aligned_alloc(alignment, size);
}

static bool has_failed(void)
{
    return allocations >= failing;
}

/* ---------------------------------------------------------------------------------------------- the story */

static void start(void)
{
    int error = life_try_start(&life);
    if (error != 0) {
        cr_assert(error == -ENOMEM && has_failed(), "start: %s", life.error.text);
        cr_assert_not_null(strstr(life.error.text, "emory"), "\"%s\" does not say what it is",
                           life.error.text);
        life_start(&life); /* memory is back: so is the store */
    }
}

/* The log gave up; the next start decides about what was in flight, and goes on. */
static void start_again(const char *topic, uint32_t in_flight)
{
    const struct error *why = log_failed(life.log);
    cr_assert(has_failed() && strstr(why->text, "out of memory") != NULL, "%s", why->text);
    life_crash(&life);
    life_start(&life);
    struct topic *t;
    uint64_t next = life_next(&life, topic);
    if (log_topic(life.log, topic, strlen(topic), 0, NO_UID, false, &t) == 0) {
        struct topic_view view;
        log_topic_view(t, &view);
        log_topic_release(life.log, t);
        cr_assert(view.durable_next == next || view.durable_next == next + in_flight,
                  "%s: the log has entries below %llu, answered were those below %llu", topic,
                  (unsigned long long)view.durable_next, (unsigned long long)next);
        life_committed(&life, topic, (uint32_t)(view.durable_next - next));
    } else {
        cr_assert_eq(next, 1u, "%s is gone", topic);
    }
}

/* What log_topic, log_producer_... say: -ENOMEM at most once. */
static bool again(int error)
{
    cr_assert(error == 0 || (error == -ENOMEM && has_failed()), "%d", error);
    return error != 0;
}

static struct topic *topic_of(const char *name, uint8_t level)
{
    struct topic *topic;
    if (again(log_topic(life.log, name, strlen(name), level, 7, true, &topic)))
        cr_assert_eq(log_topic(life.log, name, strlen(name), level, 7, true, &topic), 0);
    return topic;
}

/* False: the log failed and was started again. */
static bool put(const struct request *request, uint32_t of_batch)
{
    struct topic *topic = topic_of(request->name, request->topic_level);
    struct sent *sent = life_send(&life, request);
    unsigned no_memory = 0;
    while (sent->refused == -EAGAIN || (sent->refused == -ENOMEM && no_memory++ == 0)) {
        life_turn(&life);
        if (log_failed(life.log) != NULL)
            break;
        life_again(sent);
    }
    if (log_failed(life.log) == NULL) {
        cr_assert(sent->refused == 0 && (no_memory == 0 || has_failed()), "refused: %d", sent->refused);
        life_settle(&life);
    }
    if (log_failed(life.log) != NULL) {
        start_again(request->name, of_batch);
        return false;
    }
    cr_assert_eq(sent->write.result, 0);
    life_committed(&life, request->name, of_batch);
    log_topic_release(life.log, topic);
    return true;
}

static void numbered(const char *topic, bool named)
{
    struct producer *p;
    int error = named ? log_producer_named(life.log, "n", 1, 7, &p) : log_producer_anonymous(life.log, 8, &p);
    if (again(error)) {
        error = named ? log_producer_named(life.log, "n", 1, 7, &p) : log_producer_anonymous(life.log, 8, &p);
        cr_assert_eq(error, 0);
    }
    struct topic *t = topic_of(topic, 0);
    uint64_t number = log_last_number(life.log, p, t) + 1;
    log_topic_release(life.log, t);
    if (put(&(struct request){.name = topic,
                              .kind = WRITE_BATCH,
                              .owner = &A,
                              .entries = 2,
                              .bytes = 50,
                              .producer = p,
                              .number = number},
            2))
        log_producer_release(life.log, p);
}

static void stream(void)
{
    struct topic *topic = topic_of("t", 0);
    struct stream s = {.topic = topic, .owner = &A};
    struct request chunk = {.name = "t",
                            .kind = WRITE_CHUNK,
                            .owner = &A,
                            .stream = &s,
                            .first = true,
                            .entries = 1,
                            .bytes = 4096};
    if (!put(&chunk, 0))
        return;
    chunk.first = false;
    chunk.last = true;
    chunk.from = life_next(&life, "t") + 1;
    if (put(&chunk, 2))
        log_topic_release(life.log, topic);
}

static void write_all(void)
{
    put(&(struct request){.name = "t", .kind = WRITE_BATCH, .owner = &A, .entries = 3, .bytes = 100}, 3);
    put(&(struct request){.name = "u",
                          .kind = WRITE_APPEND,
                          .topic_level = LEVEL_WRITTEN,
                          .owner = &A,
                          .entries = 1,
                          .bytes = 10},
        1);
    numbered("t", true);
    numbered("v", false);
    stream();
    for (unsigned i = 0; i < 2; i++) /* more than one segment holds */
        put(
            &(struct request){
                .name = i % 2 ? "t" : "u", .kind = WRITE_BATCH, .owner = &A, .entries = 4, .bytes = 550000},
            4);
    life_quiet(&life);
    if (log_failed(life.log) != NULL)
        start_again("t", 0);
}

static void read_all(const char *name)
{
    struct reading r = {.name = name, .from = 1};
    for (;;) {
        life_read(&life, &r);
        if (r.read.result == -ENOMEM) {
            cr_assert(has_failed());
            reading_free(&r);
            r = (struct reading){.name = name, .from = r.from};
            life_read(&life, &r); /* memory is back */
        }
        cr_assert(r.read.result == 0 || (r.read.result > 0 && r.right), "%s from %llu: %d", name,
                  (unsigned long long)r.from, r.read.result);
        uint64_t next = r.read.next_sequence;
        bool end = r.read.result == 0;
        reading_free(&r);
        if (end)
            break;
        r = (struct reading){.name = name, .from = next};
    }
    cr_assert_eq(r.from, life_next(&life, name), "%s ends at %llu", name, (unsigned long long)r.from);
}

static void stop(void)
{
    int error = log_stop(life.log, &life.error);
    life.log = NULL;
    cr_assert(error == 0 || has_failed(), "%s", life.error.text);
    cr_assert(error == 0 || life.error.text[0] != 0);
    life_close(&life);
}

static void nothing(void *context, const struct finding *finding)
{
    (void)context;
    cr_assert_neq(finding->kind, FINDING_DAMAGE, "%s: %s", finding->file, finding->text);
}

static void check(void)
{
    struct check_report report;
    struct error err = {0};
    life_open(&life);
    int error = log_check(life.io, nothing, NULL, &report, &err);
    if (again(error)) {
        cr_assert_not_null(strstr(err.text, "memory"), "\"%s\"", err.text);
        cr_assert_eq(log_check(life.io, nothing, NULL, &report, &err), 0);
    }
    cr_assert_eq(report.damaged, 0u);
    life_close(&life);
}

static void tell(void)
{
    life_make(&life);
    life.options.memory_bytes = 24u << 20;
    life.options.watermarks = watermarks;
    life.options.watermark_slots = array_count(watermarks);
    memset(watermarks, 0, sizeof watermarks);
    start();
    write_all();
    life_crash(&life);
    check();
    start();
    read_all("t");
    read_all("u");
    read_all("v");
    numbered("t", true);
    stop();
    check();
    start();
    read_all("v");
    stop();
    in_story = allocations;
    failing = 0;
    life_start(&life);
    life_verify(&life);
    life_remove(&life);
}

/* The kernel takes 40 ms to put an AIO context away, and there are a thousand lives: without it the back end
 * signals by a thread. Where the filter is refused it only takes longer. */
static void do_without_aio(void)
{
    struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {.len = array_count(program), .filter = program};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0)
        (void)prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter);
}

Test(memory, g1_whatever_allocation_fails_nothing_answered_is_lost, .timeout = 300)
{
    life_use_memory();
    do_without_aio();
    for (uint64_t n = 1;; n++) {
        allocations = 0;
        failing = n;
        tell();
        if (in_story < n) {
            cr_assert_gt(n, 100u, "only %llu allocations", (unsigned long long)n);
            return;
        }
    }
}
