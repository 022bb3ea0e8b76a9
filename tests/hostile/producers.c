/* producers.c: rows 28 and 29: other people's producers, and numbers that are sent again.
 *
 * Numbers are sent to a topic of the attacker's own, as stamped batches that carry their number: verify.c
 * finds 1, 2, 3, ... there, each once, or the run has failed. */
#include "hostile.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define OWN_LIMIT (8 * SECOND) /* for one's own name to be free again */

/* ------------------------------------------------------------------------------------- others' */

static bool no_producers(const struct attacker *a)
{
    return a->honest_producer == 0;
}

void attack_take_name(struct attacker *a)
{
    if (!a->other_uid)
        not_tried(a, "needs two users: a name belongs to a user");
    if (no_producers(a))
        not_tried(a, "the honest client has no producer");
    while (!over(a)) {
        struct raw raw;
        struct hello hello = hello_named(&a->rng, HONEST_NAME, rng_chance(&a->rng, 50) ? HELLO_TAKE_OVER : 0);
        int rc = raw_connect(a, &raw, &hello);
        if (rc == 0)
            found(a, "another user got the honest client's producer");
        if (rc != -EACCES && !raw_may_fail(rc))
            found(a, "another user who wants the honest client's name is answered %s", strerror(-rc));
        pause_ns(MS / 4);
    }
}

void attack_take_id(struct attacker *a)
{
    while (!over(a)) {
        struct raw raw;
        struct hello hello = hello_small(&a->rng);
        hello.flags = HELLO_PRODUCER | (rng_chance(&a->rng, 30) ? HELLO_TAKE_OVER : 0);
        hello.producer = rng_chance(&a->rng, 50) ? a->honest_producer + rng_below(&a->rng, 5) - 2
                                                 : rng_edge(&a->rng, a->honest_producer);
        int rc = raw_connect(a, &raw, &hello);
        if (rc == 0 && a->honest_producer != 0 && a->other_uid && raw.welcome.producer == a->honest_producer)
            found(a, "another user goes on with the honest client's producer by its id");
        raw_close(&raw);
    }
}

/* Everything in reach of the file system that says something of, or to, others. */
void attack_read_counters(struct attacker *a)
{
    if (!a->other_uid)
        not_tried(a, "needs two users");
    char path[160];
    while (!over(a)) {
        if (open(a->stat, O_RDWR | O_CLOEXEC) >= 0)
            found(a, "the counters can be opened for writing");
        int fd = open(a->stat, O_RDONLY | O_CLOEXEC);
        if (fd >= 0) {
            if (mmap(NULL, STAT_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) != MAP_FAILED)
                found(a, "the counters can be mapped for writing");
            close(fd);
        }
        if (unlink(a->stat) == 0 || unlink(a->socket) == 0)
            found(a, "the socket or the counters can be removed");
        snprintf(path, sizeof path, "%s", a->socket);
        char *slash = strrchr(path, '/');
        check_bug(slash != NULL);
        snprintf(slash, sizeof path - (size_t)(slash - path), "/store");
        if (open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC) >= 0)
            found(a, "the store can be read by another user");
        pause_ns(10 * MS);
    }
}

/* ------------------------------------------------------------------------------------- one's own */

struct numbered {
    struct raw raw;
    uint32_t topic;
    uint64_t last; /* committed */
};

/* Connects as the producer `name`, which may have to wait for an earlier life of it. */
static bool numbered_connect(struct attacker *a, struct numbered *n, const char *name, const char *topic,
                             uint32_t flags)
{
    int64_t end = now_ns() + OWN_LIMIT;
    while (!over(a)) {
        struct hello hello = hello_named(&a->rng, name, flags);
        hello.arena_bytes = 1u << 20;
        int rc = raw_connect(a, &n->raw, &hello);
        if (rc == 0 && n->raw.welcome.producer == 0)
            not_tried(a, "the broker has no producers");
        if (rc == 0) {
            struct completion completion;
            n->topic = raw_topic(&n->raw, topic, strlen(topic), &completion);
            n->last = completion.number;
            if (n->topic != 0)
                return true;
            raw_close(&n->raw);
        } else if (rc != -EBUSY && !raw_may_fail(rc)) {
            found(a, "one's own producer name: %s (%s)", strerror(-rc), n->raw.welcome.text);
        } else if (now_ns() >= end) {
            found(a, "one's own producer name is not to be had again: %s (%s)", strerror(-rc),
                  n->raw.welcome.text);
        }
        pause_ns(MS);
    }
    return false;
}

static struct descriptor numbered_batch(struct attacker *a, struct numbered *n, uint64_t number)
{
    static uint32_t place;
    place = (place + 1) % 16;
    struct descriptor d =
        raw_stamped(&n->raw, a->seed, n->topic, place * (1u << 16), number, (uint32_t)(1 + number % 3));
    d.number = number;
    return d;
}

/* Sends it and wants `result`; 0 with DUPLICATE is told apart. */
static bool send_number(struct attacker *a, struct numbered *n, uint64_t number, int result, bool duplicate)
{
    struct completion completion;
    struct descriptor d = numbered_batch(a, n, number);
    int rc = raw_call(&n->raw, &d, &completion);
    if (rc == -ETIME && over(a))
        return false;
    if (rc != 0)
        found(a, "number %llu: no answer: %s", (unsigned long long)number, strerror(-rc));
    if (completion.result != result ||
        (result == 0 && duplicate != ((completion.flags & COMPLETION_DUPLICATE) != 0)))
        found(a, "number %llu after %llu: answered %d, flags %x, reason %u; due was %d%s",
              (unsigned long long)number, (unsigned long long)n->last, completion.result, completion.flags,
              completion.reason, result, duplicate ? " as a duplicate" : "");
    if (result == 0 && !duplicate)
        n->last = number;
    return true;
}

/* Two of the same number at once: one commits, the other is a duplicate or out of order. */
static bool send_twice(struct attacker *a, struct numbered *n)
{
    struct descriptor first = numbered_batch(a, n, n->last + 1);
    struct descriptor second = numbered_batch(a, n, n->last + 1);
    unsigned committed = 0;
    if (raw_push(&n->raw, &first) != 1 || raw_push(&n->raw, &second) != 1)
        return false;
    for (int i = 0; i < 2; i++) {
        struct completion completion;
        int rc = raw_answer(&n->raw, &completion, OWN_LIMIT);
        if (rc == -ETIME && over(a))
            return false;
        if (rc != 0)
            found(a, "a number sent twice: no answer: %s", strerror(-rc));
        bool duplicate = completion.result == 0 && (completion.flags & COMPLETION_DUPLICATE) != 0;
        committed += completion.result == 0 && !duplicate;
        if (completion.result != 0 && (completion.result != -EAGAIN || completion.reason != REASON_ORDER))
            found(a, "a number sent twice: answered %d, reason %u", completion.result, completion.reason);
    }
    if (committed != 1)
        found(a, "a number sent twice at once was committed %u times", committed);
    n->last++;
    return true;
}

static bool send_refused_first(struct attacker *a, struct numbered *n)
{
    struct completion completion;
    struct descriptor d = numbered_batch(a, n, n->last + 1);
    d.entries = MAX_BATCH_ENTRIES + 1;
    if (raw_call(&n->raw, &d, &completion) != 0)
        return false;
    if (completion.result != -EINVAL)
        found(a, "2,001 entries: answered %d", completion.result);
    return send_number(a, n, n->last + 1, 0, false);
}

static bool query(struct attacker *a, struct numbered *n, uint64_t number, int result)
{
    struct completion completion;
    struct descriptor d = {
        .op = OP_QUERY, .topic = n->topic, .number = number, .user_data = rng_next(&a->rng)};
    if (raw_call(&n->raw, &d, &completion) != 0)
        return false;
    if (completion.result != result)
        found(a, "number %llu, of which %llu are committed: a query says %d", (unsigned long long)number,
              (unsigned long long)n->last, completion.result);
    return true;
}

static bool number_step(struct attacker *a, struct numbered *n)
{
    switch (rng_below(&a->rng, 9)) {
    case 0:
        return send_twice(a, n);
    case 1:
        return n->last == 0 || send_number(a, n, n->last, 0, true);
    case 2:
        return n->last == 0 || send_number(a, n, 1 + rng_next(&a->rng) % n->last, 0, true);
    case 3:
        return send_refused_first(a, n);
    case 4:
        return send_number(a, n, n->last + 2 + rng_below(&a->rng, 9), -EAGAIN, false);
    case 5:
        return send_number(a, n, 0, -EINVAL, false);
    case 6:
        return send_number(a, n, UINT64_MAX - rng_below(&a->rng, 3), -EAGAIN, false);
    case 7:
        return query(a, n, n->last + 1, 0) && (n->last == 0 || query(a, n, n->last, 1));
    default:
        return send_number(a, n, n->last + 1, 0, false);
    }
}

static void own_names(struct attacker *a, char name[64], char topic[64])
{
    uint64_t unique = rng_next(&a->rng);
    snprintf(name, 64, "own-%016llx", (unsigned long long)unique);
    snprintf(topic, 64, ONCE_TOPIC "-%016llx", (unsigned long long)unique);
}

void attack_numbers_twice(struct attacker *a)
{
    char name[64];
    char topic[64];
    struct numbered n = {0};
    own_names(a, name, topic);
    while (numbered_connect(a, &n, name, topic, 0)) {
        for (int i = 0; i < 60 && !over(a) && number_step(a, &n); i++)
            continue;
        uint64_t last = n.last;
        raw_close(&n.raw);
        if (over(a) || !numbered_connect(a, &n, name, topic, rng_chance(&a->rng, 50) ? HELLO_TAKE_OVER : 0))
            return;
        if (n.last != last)
            found(a, "%llu numbers were committed, after a new connection the broker says %llu",
                  (unsigned long long)last, (unsigned long long)n.last);
        raw_close(&n.raw);
    }
}

void attack_numbers_wild(struct attacker *a)
{
    char name[64];
    char topic[64];
    struct numbered n = {0};
    own_names(a, name, topic);
    while (numbered_connect(a, &n, name, "hostile-numbers", 0)) {
        for (int i = 0; i < 200 && !over(a) && !raw_ended(&n.raw); i++) {
            struct completion completion;
            struct descriptor d = raw_batch(&n.raw, &a->rng, n.topic, 0, rng_below(&a->rng, 3), 64);
            static const uint8_t ops[] = {OP_BATCH, OP_APPEND, OP_CHUNK, OP_QUERY, OP_CANCEL, OP_OPEN};
            d.op = ops[rng_below(&a->rng, array_count(ops))];
            d.number = rng_chance(&a->rng, 50) ? rng_below(&a->rng, 20) : rng_edge(&a->rng, 20);
            d.flags = d.op == OP_CHUNK ? (uint16_t)rng_below(&a->rng, 4) : 0;
            d.stream = rng_below(&a->rng, 3);
            d.user_data = rng_below(&a->rng, 20);
            if (raw_push(&n.raw, &d) == 1)
                (void)raw_answer(&n.raw, &completion, rng_chance(&a->rng, 50) ? MS : 0);
        }
        raw_close(&n.raw);
    }
}

/* ------------------------------------------------------------------------------------- after death */

/* Publishes from `last` + 1 on, several at once, until it is killed. */
static void victim_numbers(struct attacker *a, const char *name, const char *topic)
{
    struct numbered n = {0};
    if (!numbered_connect(a, &n, name, topic, rng_chance(&a->rng, 30) ? HELLO_TAKE_OVER : 0))
        return;
    uint64_t next = n.last + 1;
    while (!over(a)) {
        struct completion completion;
        unsigned count = 1 + rng_below(&a->rng, 7);
        uint64_t failed = 0;
        for (unsigned i = 0; i < count; i++) {
            struct descriptor d = numbered_batch(a, &n, next + i);
            if (raw_push(&n.raw, &d) != 1)
                return;
        }
        for (unsigned i = 0; i < count; i++) {
            if (raw_answer(&n.raw, &completion, OWN_LIMIT) != 0)
                return;
            failed += completion.result != 0;
        }
        if (failed != 0)
            return; /* fenced */
        next += count;
    }
}

void attack_numbers_death(struct attacker *a)
{
    char name[64];
    char topic[64];
    own_names(a, name, topic);
    while (!over(a)) {
        uint64_t seed = rng_next(&a->rng);
        pid_t pid = fork();
        if (pid == 0) {
            a->rng.state = seed;
            victim_numbers(a, name, topic);
            _exit(0);
        }
        pause_ns(INT64_C(1000) * rng_below(&a->rng, 30000));
        if (pid > 0) {
            bool stopped = rng_chance(&a->rng, 20);
            if (stopped)
                kill(pid, SIGSTOP);
            kill(pid, SIGKILL);
            int status = 0;
            waitpid(pid, &status, 0);
            if (WIFEXITED(status) && WEXITSTATUS(status) != 0)
                _exit(WEXITSTATUS(status)); /* it has said why */
        }
    }
}

/* Takes over without end: each one that comes fences the one before, which goes on as if nothing were. */
void attack_own_take_over(struct attacker *a)
{
    char name[64];
    char topic[64];
    struct numbered n[4] = {0};
    unsigned count = 0;
    own_names(a, name, topic);
    while (!over(a)) {
        unsigned i = count % array_count(n);
        if (count >= array_count(n))
            raw_close(&n[i].raw);
        if (!numbered_connect(a, &n[i], name, topic, HELLO_TAKE_OVER))
            return;
        count++;
        for (unsigned k = 0; k < array_count(n) && k < count; k++) {
            struct completion completion;
            struct descriptor d = numbered_batch(a, &n[k], n[k].last + 1);
            if (raw_call(&n[k].raw, &d, &completion) != 0)
                continue;
            if (k == i && completion.result == 0)
                n[k].last++;
            else if (k != i && completion.result != -ESTALE && !over(a))
                found(a, "a producer that was taken over is answered %d, not -ESTALE", completion.result);
        }
    }
}
