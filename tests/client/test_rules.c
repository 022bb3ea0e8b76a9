/* The rules at the top of walrus.h, one by one. Those that have a test elsewhere:
 *
 *   Threads: one handle each in many threads       race.c; many in one: test_walrusd.c (most tests)
 *   fork: -EOWNERDEAD                              test_wait.c a_handle_does_not_survive_fork
 *   no SIGPIPE                                     test_wait.c no_sigpipe
 *   0 or negative errno, and words                 test_blocking.c, and wherever an error is provoked
 *   negative times are for ever                    test_wait.c, test_queue.c a_deadline_is_sent...
 *   entries are valid until release                test_read.c
 *   completions of one topic in commit order       test_walrusd.c, test_producer.c
 *   blocking and asynchronous calls mix            test_wait.c a_blocking_call_keeps_the_fd_readable...,
 *   below
 *   -ECONNRESET, -EPROTO, -EINPROGRESS             test_wait.c, test_hostile.c, test_retry.c,
 *   test_reconnect.c who waits for whom                             test_queue.c, test_walrusd.c
 *   a_ring_full_of_waiting_batches... exactly once                                   test_producer.c,
 *   test_reconnect.c, test_restart.c */
#include "fake.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static struct fake fake;
static walrus *handle;
static walrus_topic *topic;

static void begin(void)
{
    fake_start(&fake);
    handle = CONNECT(&fake, .queue_entries = 16, .arena_bytes = 1 << 20);
    topic = open_topic(handle, "t");
}

static void end(void)
{
    walrus_close(handle);
    fake_stop(&fake);
}

TestSuite(rules, .init = begin, .fini = end);

/* ------------------------------------------------------------------------------------- threads */

static walrus_batch *passed;

static void *begin_it(void *unused)
{
    (void)unused;
    cr_assert_eq(walrus_batch_begin(topic, &passed), 0);
    return NULL;
}

static void *fill_it(void *unused)
{
    (void)unused;
    void *data;
    cr_assert_eq(walrus_batch_reserve(passed, 5, &data), 0);
    memcpy(data, "hello", 5);
    return NULL;
}

static void *submit_it(void *unused)
{
    (void)unused;
    cr_assert_eq(walrus_batch_submit(passed, NULL), 0);
    return NULL;
}

static void *reap_it(void *unused)
{
    (void)unused;
    struct walrus_completion c;
    cr_assert_eq(walrus_wait(handle, 1, -1), 0);
    cr_assert_eq(walrus_reap(handle, &c, 1), 1);
    cr_assert_eq(c.result, 0);
    return NULL;
}

Test(rules, a_handle_may_be_handed_from_thread_to_thread)
{
    void *(*steps[])(void *) = {begin_it, fill_it, submit_it, reap_it};
    for (int round = 0; round < 20; round++) {
        for (size_t i = 0; i < array_count(steps); i++) {
            pthread_t thread;
            cr_assert_eq(pthread_create(&thread, NULL, steps[i], NULL), 0);
            cr_assert_eq(pthread_join(thread, NULL), 0);
        }
    }
    fake_pause(&fake);
    cr_assert_eq(fake_topic(&fake, "t")->count, 20);
}

/* ------------------------------------------------------------------- nothing but what was asked */

static int threads(void)
{
    int count = 0;
    DIR *folder = opendir("/proc/self/task");
    while (readdir(folder) != NULL)
        count++;
    closedir(folder);
    return count;
}

static void handlers(void (*of[NSIG])(int))
{
    for (int i = 1; i < NSIG; i++) {
        struct sigaction action;
        of[i] = sigaction(i, NULL, &action) == 0 ? action.sa_handler : NULL;
    }
}

/* A life of a handle, with errors in it. */
static void live(void)
{
    struct walrus_retry retry = {.size = sizeof retry, .max_tries = 3, .first_wait_ns = 1000};
    struct walrus_write_options options = {.size = sizeof options, .retry = &retry};
    walrus *other = NULL;
    struct walrus_connect_options nowhere = {.size = sizeof nowhere, .socket_path = "/nowhere"};
    cr_assert_lt(walrus_connect(&other, &nowhere), 0);
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, &options, NULL), 0);
    cr_assert_eq(walrus_append_for_topic(handle, "", "x", 1, NULL, NULL), -EINVAL);
    walrus_fd(handle);
    fake_pause(&fake);
    fake_rule(&fake, (struct fake_rule){.op = FAKE_ANY_WRITE, .times = 3, .result = -EBUSY});
    fake_rule(&fake, (struct fake_rule){.op = FAKE_ANY_WRITE, .times = 1, .result = FAKE_WILD_TAIL});
    fake_resume(&fake);
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, &options, NULL), -EBUSY);
    cr_assert_lt(walrus_append_for_topic(handle, "t", "x", 1, NULL, NULL), 0);
}

Test(rules, no_threads_no_handlers_no_output)
{
    void (*before[NSIG])(int) = {NULL}, (*after[NSIG])(int) = {NULL};
    handlers(before);
    int had = threads();
    int output = memfd_create("output", 0), standard[2] = {dup(1), dup(2)};
    fflush(NULL);
    dup2(output, 1);
    dup2(output, 2);
    live();
    fflush(NULL);
    dup2(standard[0], 1);
    dup2(standard[1], 2);
    cr_assert_eq(lseek(output, 0, SEEK_END), 0, "the library printed something");
    cr_assert_eq(threads(), had);
    handlers(after);
    cr_assert_eq(memcmp(before, after, sizeof before), 0);
}

/* ------------------------------------------------------------------------------------ pointers */

Test(rules, pointers_of_reserve_are_valid_until_submit_whatever_happens_beside)
{
    enum { ENTRIES = 100 };
    walrus_batch *batch;
    uint8_t *entries[ENTRIES];
    cr_assert_eq(walrus_batch_begin(topic, &batch), 0);
    for (int i = 0; i < ENTRIES; i++) {
        void *data;
        cr_assert_eq(walrus_batch_reserve(batch, 1000, &data), 0, "%s", walrus_error(handle));
        entries[i] = data;
        cr_assert_eq((uintptr_t)data % 16, 0);
        walrus_batch *other; /* takes of the room that is not filled yet */
        cr_assert_eq(walrus_batch_begin(topic, &other), 0);
        cr_assert_eq(walrus_batch_add(other, data, 777), 0);
        if (i % 2 == 0)
            walrus_batch_abort(other);
        else
            cr_assert_eq(walrus_batch_submit(other, NULL), 0);
        cr_assert_eq(walrus_append_for_topic(handle, "u", "x", 1, NULL, NULL), 0);
        struct walrus_completion c[16];
        cr_assert_geq(walrus_reap(handle, c, 16), 0);
    }
    for (int i = 0; i < ENTRIES; i++) /* only now */
        memset(entries[i], i, 1000);
    cr_assert_eq(walrus_batch_submit(batch, NULL), 0);
    while (walrus_in_flight(handle) > 0)
        reap_it(NULL);
    fake_pause(&fake);
    struct fake_topic *t = fake_topic(&fake, "t");
    cr_assert_eq(t->count, ENTRIES + ENTRIES / 2);
    for (int i = 0; i < ENTRIES; i++) {
        const struct fake_entry *e = &t->entries[ENTRIES / 2 + i];
        cr_assert_eq(e->length, 1000);
        for (int k = 0; k < 1000; k++)
            cr_assert_eq(e->data[k], i);
    }
}

/* ------------------------------------------------------------------------------------- options */

Test(rules, options_of_an_older_and_of_a_newer_program_are_understood)
{
    /* Older: what it does not know of is zero. */
    struct walrus_submit_options older = {.size = offsetof(struct walrus_submit_options, queue),
                                          .user_data = 3,
                                          .append = 1,
                                          .queue = 9,
                                          .number = 9};
    walrus_batch *batch;
    cr_assert_eq(walrus_batch_begin(topic, &batch), 0);
    cr_assert_eq(walrus_batch_add(batch, "x", 1), 0);
    cr_assert_eq(walrus_batch_submit(batch, &older), 0, "%s", walrus_error(handle));
    reap_it(NULL);
    struct walrus_write_options written = {
        .size = offsetof(struct walrus_write_options, deadline_ns), .deadline_ns = 1, .number = 9};
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, &written, NULL), 0);
    /* Newer: as long as what this library does not know is zero. */
    struct {
        struct walrus_write_options known;
        uint64_t more;
    } newer = {.known = {.size = sizeof newer}};
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, &newer.known, NULL), 0);
    newer.more = 1;
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, &newer.known, NULL), -EINVAL);
    cr_assert_not_null(strstr(walrus_error(handle), "walrus_write_options"));
}

/* -------------------------------------------------------------------------------- no system call */

static char add_filter_failed, all_good;

static bool add_filter(void)
{
    /* What ends a thread is allowed, and the clock, which is a call where the vdso does not have it. */
    int allowed[] = {SYS_clock_gettime, SYS_futex, SYS_exit, SYS_madvise, SYS_munmap, SYS_rt_sigprocmask};
    struct sock_filter filter[array_count(allowed) + 3];
    unsigned n = 0, count = array_count(allowed);
    filter[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (unsigned i = 0; i < count; i++)
        filter[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)allowed[i],
                                                   (unsigned char)(count - i), 0);
    filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {(unsigned short)n, filter};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

/* Any other system call kills the process. (A failed assertion would be one, too.) */
static void *use_without_system_calls(void *unused)
{
    (void)unused;
    struct walrus_submit_options options = {.size = sizeof options, .queue = 1, .deadline_ns = 1000000000000};
    bool good = true;
    if (!add_filter())
        return &add_filter_failed;
    for (uint64_t i = 0; i < 2000; i++) {
        walrus_batch *batch;
        void *data;
        uint64_t answered = __atomic_load_n(&fake.answered, __ATOMIC_RELAXED);
        options.append = i % 3 == 0;
        good = good && walrus_batch_begin(topic, &batch) == 0 &&
               walrus_batch_reserve(batch, 100, &data) == 0 && walrus_batch_trim(batch, 50) == 0 &&
               walrus_batch_submit(batch, &options) == 0;
        while (good && __atomic_load_n(&fake.answered, __ATOMIC_RELAXED) == answered) {
        }
        struct walrus_completion c;
        good = good && walrus_reap(handle, &c, 1) == 1 && c.result == 0;
        (void)walrus_topic_durable_next(topic);
    }
    return good ? &all_good : NULL;
}

Test(rules, nothing_from_begin_to_reap_is_a_system_call_while_the_broker_is_awake)
{
#if defined(__SANITIZE_ADDRESS__)
    cr_skip("SKIPPED: the sanitizer makes system calls of its own");
#endif
    fake_pause(&fake);
    fake.swallow = fake.busy = true;
    fake_resume(&fake);
    pthread_t thread;
    void *good = NULL;
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, NULL, NULL), 0); /* it is awake from here on */
    cr_assert_eq(pthread_create(&thread, NULL, use_without_system_calls, NULL), 0);
    cr_assert_eq(pthread_join(thread, &good), 0);
    if (good == &add_filter_failed)
        cr_skip("SKIPPED: no seccomp filters here");
    cr_assert_eq(good, &all_good);
}
