/* Handles that outlive their broker: walrusd is killed again and again under them, and everything is read
 * back. */
#include "../../libclient/include/walrus.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define ROUNDS    20
#define TOPICS    3
#define IN_FLIGHT 32

static char folder[] = "/tmp/walrus-client-XXXXXX";
static char data[64], path[64], words[512];
static pid_t broker;

/* Starts walrusd and waits for its line. False: it did not serve. */
static bool start_broker(void)
{
    int out[2];
    if (pipe2(out, O_CLOEXEC) != 0)
        return false;
    const char *program = getenv("WALRUS_TEST_WALRUSD");
    broker = fork();
    if (broker == 0) {
        dup2(out[1], STDOUT_FILENO);
        int nowhere = open("/dev/null", O_WRONLY);
        dup2(nowhere, STDERR_FILENO);
        execl(program, "walrusd", "--data-dir", data, "--socket", path, (char *)NULL);
        _exit(127);
    }
    close(out[1]);
    char line[200] = "";
    size_t length = 0;
    ssize_t n;
    while (strchr(line, '\n') == NULL && (n = read(out[0], line + length, sizeof line - 1 - length)) > 0)
        length += (size_t)n;
    close(out[0]);
    return strstr(line, "ready on") != NULL;
}

static void end_broker(int signal_number)
{
    kill(broker, signal_number);
    waitpid(broker, NULL, 0);
}

static walrus *connect_with(struct walrus_connect_options options)
{
    walrus *handle = NULL;
    options.size = sizeof options;
    options.socket_path = path;
    options.error = words;
    options.error_size = sizeof words;
    cr_assert_eq(walrus_connect(&handle, &options), 0, "%s", words);
    return handle;
}

static void begin(void)
{
    if (getenv("WALRUS_TEST_WALRUSD") == NULL)
        cr_skip("SKIPPED: WALRUS_TEST_WALRUSD does not say where walrusd is");
    cr_assert_not_null(mkdtemp(folder));
    snprintf(data, sizeof data, "%s/data", folder);
    snprintf(path, sizeof path, "%s/socket", folder);
    cr_assert(start_broker());
}

static int remove_one(const char *name, const struct stat *st, int type, struct FTW *where)
{
    (void)st;
    (void)type;
    (void)where;
    return remove(name);
}

static void end(void)
{
    end_broker(SIGTERM);
    nftw(folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

TestSuite(restart, .init = begin, .fini = end, .timeout = 120);

/* ---------------------------------------------------------------------------------------- killer */

/* Another thread, which kills the broker and starts it again when enough was committed since. */
struct killer {
    pthread_t thread;
    atomic_uint_fast64_t progress;
    atomic_bool done, failed;
    int rounds;
};

static void *kill_and_start(void *argument)
{
    struct killer *killer = argument;
    uint64_t random = 88172645463325252u;
    for (int round = 0; round < killer->rounds && !killer->failed; round++) {
        uint64_t until = killer->progress + random % 100 + 1;
        random ^= random << 13, random ^= random >> 7, random ^= random << 17;
        while (killer->progress < until && !killer->failed)
            sched_yield();
        end_broker(round % 4 == 3 ? SIGTERM : SIGKILL);
        if (!start_broker())
            killer->failed = true;
    }
    killer->done = true;
    return NULL;
}

static void killer_start(struct killer *killer, int rounds)
{
    *killer = (struct killer){.rounds = rounds};
    cr_assert_eq(pthread_create(&killer->thread, NULL, kill_and_start, killer), 0);
}

static void killer_join(struct killer *killer)
{
    pthread_join(killer->thread, NULL);
    cr_assert(!killer->failed);
}

/* -------------------------------------------------------------------------------------- producer */

struct line {
    walrus_topic *topic;
    uint64_t next; /* entry to send */
    uint64_t done; /* entries answered 0 */
    uint32_t in_flight;
    bool waits; /* something was refused: it goes on behind it when all is answered */
};

struct entry {
    uint64_t n;
    char filling[700];
};

struct producer {
    walrus *handle;
    struct line lines[TOPICS];
    uint64_t duplicates, refusals;
    bool by_fd; /* sleeps in poll, not in walrus_wait */
};

static void open_lines(struct producer *p)
{
    for (int i = 0; i < TOPICS; i++) {
        char name[32];
        snprintf(name, sizeof name, "line %d", i);
        cr_assert_eq(walrus_topic_open(p->handle, name, strlen(name), NULL, &p->lines[i].topic), 0);
        p->lines[i].next = p->lines[i].done + 1;
    }
}

static bool send_next(struct producer *p, int which)
{
    struct line *line = &p->lines[which];
    walrus_batch *batch;
    void *at;
    int code = walrus_batch_begin(line->topic, &batch);
    if (code == -EAGAIN)
        return false;
    cr_assert_eq(code, 0, "%s", walrus_error(p->handle));
    code = walrus_batch_reserve(batch, sizeof(struct entry), &at);
    if (code == 0) {
        struct entry entry = {.n = line->next};
        memset(entry.filling, (int)line->next, sizeof entry.filling);
        memcpy(at, &entry, sizeof entry);
        struct walrus_submit_options options = {.size = sizeof options,
                                                .user_data = line->next * TOPICS + (uint64_t)which};
        code = walrus_batch_submit(batch, &options);
    }
    if (code == -EAGAIN) {
        walrus_batch_abort(batch);
        return false;
    }
    cr_assert_eq(code, 0, "%d: %s", code, walrus_error(p->handle));
    line->next++;
    line->in_flight++;
    return true;
}

static void fill(struct producer *p)
{
    for (bool more = true; more;) {
        more = false;
        for (int i = 0; i < TOPICS && walrus_in_flight(p->handle) < IN_FLIGHT; i++)
            more = (!p->lines[i].waits && send_next(p, i)) || more;
    }
}

static void take(struct producer *p, const struct walrus_completion *c)
{
    struct line *line = &p->lines[c->user_data % TOPICS];
    uint64_t n = c->user_data / TOPICS;
    line->in_flight--;
    if (c->result == 0) {
        cr_assert_eq(n, line->done + 1, "%llu behind %llu", (unsigned long long)n,
                     (unsigned long long)line->done);
        cr_assert_eq(c->receipt.number, n);
        line->done = n;
        p->duplicates += (c->receipt.flags & WALRUS_RECEIPT_DUPLICATE) != 0;
    } else {
        cr_assert_eq(c->result, -EAGAIN, "%d, reason %d: %s", c->result, c->receipt.reason,
                     walrus_error(p->handle));
        line->waits = true;
        p->refusals++;
    }
    if (line->waits && line->in_flight == 0) {
        line->next = line->done + 1;
        line->waits = false;
    }
}

/* One sleep, and what it brought. */
static void turn(struct producer *p, struct killer *killer)
{
    if (p->by_fd) {
        struct pollfd fd = {.fd = walrus_fd(p->handle), .events = POLLIN};
        cr_assert_eq(poll(&fd, 1, 60000), 1);
    } else {
        int code = walrus_wait(p->handle, 1, -1);
        cr_assert_eq(code, 0, "%s", walrus_error(p->handle));
    }
    struct walrus_completion c[IN_FLIGHT];
    int count = walrus_reap(p->handle, c, IN_FLIGHT);
    cr_assert_geq(count, 0, "%d: %s", count, walrus_error(p->handle));
    for (int i = 0; i < count; i++)
        take(p, &c[i]);
    killer->progress += (uint64_t)count;
}

/* Everything is there once, in order, and nothing else. */
static void read_back(const struct producer *p)
{
    walrus *reader = connect_with((struct walrus_connect_options){.flags = 0});
    for (int i = 0; i < TOPICS; i++) {
        char name[32];
        snprintf(name, sizeof name, "line %d", i);
        uint64_t from = 1;
        for (;;) {
            walrus_entries *entries;
            int got = walrus_batch_read_for_topic(reader, name, from, NULL, &entries);
            cr_assert_geq(got, 0, "%s", walrus_error(reader));
            if (got == 0)
                break;
            struct walrus_entry e;
            for (size_t k = 0; walrus_entries_get(entries, k, &e); k++, from++) {
                struct entry entry;
                cr_assert_eq(e.length, sizeof entry);
                memcpy(&entry, e.data, sizeof entry);
                cr_assert_eq(e.sequence, from);
                cr_assert_eq(entry.n, from, "%s: entry %llu at %llu", name, (unsigned long long)entry.n,
                             (unsigned long long)from);
                cr_assert_eq(entry.filling[699], (char)entry.n);
            }
            walrus_entries_release(entries);
        }
        cr_assert_eq(from - 1, p->lines[i].done);
    }
    walrus_close(reader);
}

static void outlive(struct producer *p)
{
    struct killer killer;
    open_lines(p);
    killer_start(&killer, ROUNDS);
    while (!killer.done) {
        fill(p);
        turn(p, &killer);
    }
    killer_join(&killer);
    while (walrus_in_flight(p->handle) > 0)
        turn(p, &killer);
    struct walrus_info info = {.size = sizeof info};
    cr_assert_eq(walrus_get_info(p->handle, &info), 0);
    cr_assert_eq(info.reconnects, ROUNDS);
    cr_log_info("%llu, %llu, %llu entries; %llu duplicates, %llu refusals",
                (unsigned long long)p->lines[0].done, (unsigned long long)p->lines[1].done,
                (unsigned long long)p->lines[2].done, (unsigned long long)p->duplicates,
                (unsigned long long)p->refusals);
    read_back(p);
}

Test(restart, g5_an_anonymous_producer_outlives_twenty_brokers_and_every_entry_is_there_once_in_order)
{
    struct producer p = {.handle = connect_with((struct walrus_connect_options){.flags = WALRUS_RECONNECT})};
    outlive(&p);
    walrus_close(p.handle);
}

Test(restart, g5_a_named_producer_with_an_event_loop_outlives_twenty_brokers)
{
    struct producer p = {.handle = connect_with((struct walrus_connect_options){
                             .flags = WALRUS_RECONNECT, .producer = "p", .queue_entries = 64}),
                         .by_fd = true};
    outlive(&p);
    walrus_close(p.handle);
}

/* The program itself is new each time, and asks where to go on. */
Test(restart, g5_a_named_producer_that_is_restarted_with_its_broker_goes_on_behind_its_last_number)
{
    struct producer p = {.duplicates = 0};
    struct killer killer = {.rounds = 0};
    for (int round = 0; round < 10; round++) {
        p.handle = connect_with((struct walrus_connect_options){.producer = "p"});
        open_lines(&p);
        for (int i = 0; i < TOPICS; i++) {
            struct line *line = &p.lines[i];
            uint64_t last = walrus_topic_last_number(line->topic);
            cr_assert_geq(last, line->done);
            *line = (struct line){.topic = line->topic, .done = last, .next = last + 1};
        }
        fill(&p);
        for (int i = 0; i < round; i++) {
            turn(&p, &killer);
            fill(&p);
        }
        end_broker(SIGKILL);
        walrus_close(p.handle);
        cr_assert(start_broker());
    }
    p.handle = connect_with((struct walrus_connect_options){.producer = "p"});
    open_lines(&p);
    for (int i = 0; i < TOPICS; i++)
        p.lines[i].done = walrus_topic_last_number(p.lines[i].topic);
    read_back(&p);
    walrus_close(p.handle);
}

/* ----------------------------------------------------------------------------- other than durable */

/* What was answered below durable may be lost with the broker. It goes on all the same: nothing twice,
 * nothing out of order, and the receipts say that something was lost. */
Test(restart, a_producer_below_durable_goes_on_and_is_told_what_was_lost)
{
    struct producer p = {.handle = connect_with((struct walrus_connect_options){.flags = WALRUS_RECONNECT})};
    struct walrus_topic_options options = {.size = sizeof options, .level = WALRUS_LEVEL_ACCEPTED};
    struct line *line = &p.lines[0];
    cr_assert_eq(walrus_topic_open(p.handle, "loose", 5, &options, &line->topic), 0);
    line->next = 1;
    uint64_t lost = 0, answered = 0;
    for (int round = 0; round < 10; round++) {
        for (uint64_t until = answered + 200; answered < until;) {
            while (walrus_in_flight(p.handle) < IN_FLIGHT && send_next(&p, 0))
                continue;
            cr_assert_eq(walrus_wait(p.handle, 1, -1), 0, "%s", walrus_error(p.handle));
            struct walrus_completion c[IN_FLIGHT];
            int count = walrus_reap(p.handle, c, IN_FLIGHT);
            for (int i = 0; i < count; i++) {
                cr_assert_eq(c[i].result, 0, "%d, reason %d", c[i].result, c[i].receipt.reason);
                lost += (c[i].receipt.flags & WALRUS_RECEIPT_EARLIER_LOST) != 0;
                answered++;
            }
        }
        end_broker(SIGKILL);
        cr_assert(start_broker());
    }
    while (walrus_in_flight(p.handle) > 0) {
        struct walrus_completion c;
        cr_assert_eq(walrus_wait(p.handle, 1, -1), 0);
        cr_assert_eq(walrus_reap(p.handle, &c, 1), 1);
        cr_assert_eq(c.result, 0);
        answered++;
    }
    cr_assert_eq(answered, line->next - 1);
    walrus *reader = connect_with((struct walrus_connect_options){.flags = 0});
    uint64_t before = 0, there = 0, from = 1;
    for (int got = 1; got > 0;) {
        walrus_entries *entries;
        got = walrus_batch_read_for_topic(reader, "loose", from, NULL, &entries);
        cr_assert_geq(got, 0, "%s", walrus_error(reader));
        struct walrus_entry e;
        for (size_t i = 0; got > 0 && walrus_entries_get(entries, i, &e); i++, there++) {
            struct entry entry;
            memcpy(&entry, e.data, sizeof entry);
            cr_assert_gt(entry.n, before);
            before = entry.n;
        }
        from = got > 0 ? walrus_entries_next(entries) : from;
        walrus_entries_release(entries);
    }
    cr_log_info("%llu answered, %llu there, %llu receipts told of losses", (unsigned long long)answered,
                (unsigned long long)there, (unsigned long long)lost);
    cr_assert(there == answered || lost > 0);
    walrus_close(reader);
    walrus_close(p.handle);
}

/* ----------------------------------------------------------------------------------- descriptors */

/* At the limit of descriptors nothing can be connected; below it, it goes on. */
Test(restart, a_process_without_descriptors_connects_again_when_it_has_some)
{
    walrus *handle = connect_with((struct walrus_connect_options){.flags = WALRUS_RECONNECT});
    int fd = walrus_fd(handle);
    cr_assert_eq(walrus_append_for_topic(handle, "t", "1", 1, NULL, NULL), 0, "%s", walrus_error(handle));
    end_broker(SIGKILL);
    cr_assert(start_broker());
    struct rlimit limit;
    cr_assert_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
    /* A connection takes six: the socket, and the five that come with the welcome. An attempt that is under
     * way has the socket already, and gives it back. Nothing is asserted meanwhile: Criterion needs
     * descriptors for that. */
    int fillers[3];
    for (int i = 0; i < 3; i++)
        fillers[i] = dup(fd); /* poll needs a limit above 0, and standard input may be closed */
    int polled = 1, reaped = 0, connected = -EMFILE;
    for (rlim_t more = 0; more < 5; more++) {
        int next = dup(fd);
        close(next);
        struct rlimit low = {.rlim_cur = (rlim_t)next + more, .rlim_max = limit.rlim_max};
        setrlimit(RLIMIT_NOFILE, &low);
        for (int turns = 0; turns < 4 && polled == 1 && reaped == 0; turns++) {
            struct walrus_completion c;
            struct pollfd ready = {.fd = fd, .events = POLLIN};
            polled = poll(&ready, 1, 20000);
            reaped = walrus_reap(handle, &c, 1);
        }
        struct walrus *none;
        struct walrus_connect_options options = {
            .size = sizeof options, .socket_path = path, .error = words, .error_size = sizeof words};
        if (connected == -EMFILE)
            connected = walrus_connect(&none, &options);
    }
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
    for (int i = 0; i < 3; i++)
        close(fillers[i]);
    cr_assert_eq(polled, 1);
    cr_assert_eq(reaped, 0, "%s", walrus_error(handle));
    cr_assert_eq(connected, -EMFILE, "%s", words);
    cr_assert_eq(walrus_append_for_topic(handle, "t", "2", 1, NULL, NULL), 0, "%s", walrus_error(handle));
    struct walrus_info info = {.size = sizeof info};
    cr_assert_eq(walrus_get_info(handle, &info), 0);
    cr_assert_eq(info.reconnects, 1);
    cr_assert_eq(walrus_fd(handle), fd);
    walrus_close(handle);
}

/* ---------------------------------------------------------------------------------------- reader */

Test(restart, a_reader_that_follows_gets_every_entry_once_through_ten_brokers)
{
    struct producer p = {.handle = connect_with((struct walrus_connect_options){.flags = WALRUS_RECONNECT})};
    walrus *reader = connect_with((struct walrus_connect_options){.flags = WALRUS_RECONNECT});
    struct killer killer;
    open_lines(&p);
    killer_start(&killer, 10);
    struct walrus_read_options options = {.size = sizeof options, .follow_ns = 5000000};
    uint64_t from = 1;
    while (!killer.done) {
        fill(&p);
        walrus_entries *entries;
        int got = walrus_batch_read_for_topic(reader, "line 0", from, &options, &entries);
        cr_assert(got > 0 || got == -ETIME, "%d: %s", got, walrus_error(reader));
        struct walrus_entry e;
        for (size_t i = 0; walrus_entries_get(entries, i, &e); i++, from++) {
            struct entry entry;
            cr_assert_eq(e.sequence, from);
            memcpy(&entry, e.data, sizeof entry);
            cr_assert_eq(entry.n, from);
        }
        walrus_entries_release(entries);
        turn(&p, &killer);
    }
    killer_join(&killer);
    while (walrus_in_flight(p.handle) > 0)
        turn(&p, &killer);
    cr_assert_gt(from, 1);
    read_back(&p);
    walrus_close(reader);
    walrus_close(p.handle);
}
