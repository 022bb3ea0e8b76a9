#include "harness.h"

#include <poll.h>
#include <time.h>
#include <unistd.h>

static struct rig rig;
static struct client client;
static uint32_t topic;

static void start(void)
{
    rig_start(&rig, NULL, 0);
    client_connect(&rig, &client);
    topic = client_topic(&rig, &client, "t");
}

static bool signalled(void)
{
    uint64_t value;
    return read(client.signal, &value, sizeof value) == (ssize_t)sizeof value;
}

/* Publishes `count` writes with wake_at at `ahead` beyond what has been reaped; was there a signal after each
 * number of answers? */
static void expect_signal_at(uint32_t ahead, uint32_t count)
{
    while (signalled())
        continue;
    uint32_t head = client.cq.mirror.c_head;
    word_store(&client.words->wake_at, head + ahead);
    full_fence();
    for (uint32_t i = 0; i < count; i++) {
        struct descriptor d = client_text(&client, topic, 64 * i, "x");
        client_push(&client, &d);
        while (word_load_acquire(&client.broker->cq_tail) == head + i)
            rig_turn(&rig, 1);
        rig_turn(&rig, 20);
        cr_assert_eq(signalled(), i == ahead, "answer %u of %u, wake at %u", i, count, ahead);
    }
    struct completion completion;
    while (client_pop(&client, &completion))
        continue;
}

Test(signal, comes_if_and_only_if_the_tail_passes_the_index)
{
    start();
    for (uint32_t ahead = 0; ahead < 10; ahead++)
        expect_signal_at(ahead, 10);
    expect_signal_at(10, 10);         /* not reached */
    expect_signal_at(UINT32_MAX, 10); /* behind */
    client_close(&client);
    rig_turn(&rig, 40);
    rig_stop(&rig);
}

Test(signal, is_one_for_many_answers_of_a_turn)
{
    start();
    while (signalled())
        continue;
    uint64_t before = server_values(rig.server)->session_signals;
    word_store(&client.words->wake_at, client.cq.mirror.c_head + 3);
    rig.log.hold_answers = true;
    for (uint32_t i = 0; i < 10; i++) {
        struct descriptor d = client_text(&client, topic, 64 * i, "x");
        client_push(&client, &d);
    }
    rig_turn(&rig, 20);
    rig.log.hold_answers = false;
    rig_turn(&rig, 20);
    cr_assert(signalled());
    cr_assert_eq(server_values(rig.server)->session_signals, before + 1);
    client_close(&client);
    rig_turn(&rig, 40);
    rig_stop(&rig);
}

/* ------------------------------------------------------------------------------------------------ both
 * wake-ups, no sleep lost */

#define ROUNDS     500000
#define LOST_AFTER 10000 /* ms without a wake-up: it will never come */

/* Up to a few microseconds, in steps of nanoseconds: the race is about when exactly two cores store and look.
 * Looking at the broker's words all the while keeps their lines shared, so that its stores take long to be
 * seen. */
static void pause_at_random(uint64_t *seed, uint32_t most)
{
    *seed = *seed * UINT64_C(6364136223846793005) + 1442695040888963407;
    uint32_t steps = (uint32_t)(*seed >> 33) % most;
    for (uint32_t i = 0; i < steps; i++) {
        (void)word_load(&client.broker->parked);
        (void)word_load(&client.broker->cq_tail);
    }
}

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Never asleep, so that the next descriptor comes while the broker is about to park. */
static bool look_for_answer(struct completion *completion)
{
    int64_t end = 0;
    for (uint64_t i = 1; ring_pop_completion(&client.cq, completion) != 1; i++)
        if (i % 100000 == 0) {
            if (end == 0)
                end = now_ms() + LOST_AFTER;
            else if (now_ms() > end)
                return false;
        }
    return true;
}

/* As the library does it: arm, fence, look again, sleep on the eventfd. The rule of a lost wake-up: nothing
 * for ten seconds. */
static bool wait_for_answer(struct completion *completion)
{
    while (ring_pop_completion(&client.cq, completion) != 1) {
        word_store(&client.words->wake_at, client.cq.mirror.c_head);
        full_fence();
        if (ring_pop_completion(&client.cq, completion) == 1)
            return true;
        struct pollfd poll_fd = {.fd = client.signal, .events = POLLIN};
        if (poll(&poll_fd, 1, LOST_AFTER) != 1)
            return false;
        uint64_t value;
        ssize_t ignored = read(client.signal, &value, sizeof value);
        (void)ignored;
    }
    return true;
}

static char failure[200]; /* no asserts off the test's own thread */

/* What the client does around each descriptor. */
struct game {
    bool sleeps;      /* for each answer; else it looks */
    uint32_t before;  /* steps at most before it publishes */
    uint32_t between; /* before it arms and sleeps */
};

static bool one_round(const struct game *game, uint64_t number, uint64_t *seed)
{
    struct descriptor nothing = {.op = OP_NONE, .user_data = number};
    struct completion completion;
    pause_at_random(seed, game->before);
    bool pushed = ring_push_descriptor(&client.sq, &nothing) == 1;
    full_fence();
    if (word_load(&client.broker->parked) == PARKED) {
        uint64_t one = 1;
        ssize_t ignored = write(client.doorbell, &one, sizeof one);
        (void)ignored;
    }
    pause_at_random(seed, game->between);
    if (!pushed || !(game->sleeps ? wait_for_answer(&completion) : look_for_answer(&completion))) {
        snprintf(failure, sizeof failure,
                 "round %llu: a wake-up was lost: published %u taken %u posted %u reaped %u parked %u",
                 (unsigned long long)number, client.sq.mirror.p_tail, word_load(&client.broker->sq_head),
                 word_load(&client.broker->cq_tail), client.cq.mirror.c_head,
                 word_load(&client.broker->parked));
        return false;
    }
    if (completion.user_data != number || completion.result != -EINVAL) {
        snprintf(failure, sizeof failure, "round %llu: a wrong answer", (unsigned long long)number);
        return false;
    }
    return true;
}

static void *play(void *argument)
{
    uint64_t seed = 42;
    for (uint64_t i = 0; i < ROUNDS && one_round(argument, i, &seed); i++)
        continue;
    uint64_t one = 1;
    ssize_t ignored = write(rig.stop.fd, &one, sizeof one);
    (void)ignored;
    return NULL;
}

/* One descriptor at a time. The loop runs in this thread, since an io belongs to the one that made it. */
static void ping_pong(struct game game, int64_t spin_ns, int backend)
{
    struct server_options options = {.spin_ns = spin_ns};
    rig_start(&rig, &options, backend);
    client_connect(&rig, &client);
    rig_watch_stop(&rig);
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, play, &game), 0);
    while (!rig.stop_asked)
        rig_turn(&rig, 1);
    cr_assert_eq(pthread_join(thread, NULL), 0);
    rig_unwatch_stop(&rig);
    cr_assert_eq(failure[0], '\0', "%s", failure);
    client_close(&client);
    rig_turn(&rig, 40);
    rig_stop(&rig);
}

/* The broker parks at once, the client publishes about when it does: with either fence of the doorbell taken
 * out, the store of one side and the look of the other pass each other, and the descriptor is slept on. */
Test(doorbell, no_descriptor_is_ever_slept_on, .timeout = 200)
{
    ping_pong((struct game){.before = 4000, .between = 1}, 0, IO_BACKEND_PWRITE);
}

/* The client's half: arms and sleeps about when the next answer is posted. */
static void *sleep_for_each(void *argument)
{
    (void)argument;
    uint64_t seed = 7;
    for (uint64_t i = 0; i < ROUNDS; i++) {
        struct completion completion;
        pause_at_random(&seed, 30);
        if (!wait_for_answer(&completion)) {
            snprintf(failure, sizeof failure, "answer %llu: a signal was lost: posted %u reaped %u",
                     (unsigned long long)i, word_load(&client.broker->cq_tail), client.cq.mirror.c_head);
            break;
        }
    }
    __atomic_store_n(&rig.stop_asked, true, __ATOMIC_RELEASE);
    return NULL;
}

/* In a turn there is much between a completion and the look at wake_at; here there is nothing, so that taking
 * out the fence of either side shows. */
Test(signal, no_answer_is_ever_slept_on, .timeout = 200)
{
    rig_start(&rig, NULL, 0);
    client_connect(&rig, &client);
    struct session *session = TAILQ_FIRST(&rig.server->sessions);
    pthread_t thread;
    uint64_t seed = 8;
    cr_assert_eq(pthread_create(&thread, NULL, sleep_for_each, NULL), 0);
    for (uint64_t posted = 0; posted < ROUNDS; posted++) {
        while (word_load_acquire(&client.words->cq_head) != (uint32_t)posted &&
               !__atomic_load_n(&rig.stop_asked, __ATOMIC_ACQUIRE))
            ck_pr_stall();
        seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407;
        for (uint32_t steps = (uint32_t)(seed >> 33) % 30; steps > 0; steps--)
            (void)word_load(&client.words->wake_at);
        struct completion completion = {0};
        session->outstanding++;
        complete_post(session, &completion);
        complete_signals(rig.server);
        if (__atomic_load_n(&rig.stop_asked, __ATOMIC_ACQUIRE))
            break;
    }
    cr_assert_eq(pthread_join(thread, NULL), 0);
    cr_assert_eq(failure[0], '\0', "%s", failure);
    client_close(&client);
    rig_turn(&rig, 40);
    rig_stop(&rig);
}

Test(doorbell, both_sides_sleep_and_nothing_is_lost_on_uring, .timeout = 200)
{
    ping_pong((struct game){.sleeps = true, .before = 20000, .between = 1000}, SPIN_ADAPTIVE,
              IO_BACKEND_URING);
}

static struct stat_loop loop_now(const struct stat_page *page)
{
    return (struct stat_loop){.state = __atomic_load_n(&page->loop.state, __ATOMIC_RELAXED),
                              .wake_by_ns = __atomic_load_n(&page->loop.wake_by_ns, __ATOMIC_RELAXED)};
}

/* Asleep with nothing to wake for but what others do: no turn, no look, no CPU. */
Test(doorbell, p7_an_idle_broker_with_a_follower_sleeps_without_a_deadline, .timeout = 60)
{
    static struct stat_page page;
    struct server_options options = {.stat = &page, .spin_ns = SPIN_ADAPTIVE};
    rig_start(&rig, &options, 0);
    client_connect(&rig, &client);
    topic = client_topic(&rig, &client, "t");
    rig_run(&rig);
    struct descriptor d = {.op = OP_READ, .topic = topic, .flags = DESCRIPTOR_FOLLOW, .number = 1};
    client_push(&client, &d);
    for (;;) {
        struct stat_loop loop = loop_now(&page);
        if (loop.state == STAT_LOOP_ASLEEP && loop.wake_by_ns == INT64_MAX &&
            word_load(&client.broker->sq_head) == client.sq.mirror.p_tail)
            break;
        sched_yield();
    }
    rig_halt(&rig);
    cr_assert_eq(server_values(rig.server)->session_pending_reads, 1);
    client_close(&client);
    rig_turn(&rig, 40);
    rig_stop(&rig);
}
