#include "harness.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static struct rig rig;
static struct client bad, good;
static uint32_t bad_topic, good_topic;

static void start(void)
{
    rig_start(&rig, NULL, 0);
    client_connect(&rig, &bad);
    client_connect(&rig, &good);
    bad_topic = client_topic(&rig, &bad, "bad");
    good_topic = client_topic(&rig, &good, "good");
}

/* The other one is served as if nothing had happened. */
static void good_is_served(void)
{
    static uint64_t sequence;
    struct descriptor d = client_text(&good, good_topic, 64, "honest");
    struct completion completion = client_call(&rig, &good, &d);
    cr_assert_eq(completion.result, 0);
    cr_assert_eq(completion.first_sequence, ++sequence);
    cr_assert_eq(completion.entries, 1);
}

static void stop(void)
{
    good_is_served();
    client_close(&bad);
    client_close(&good);
    rig_turn(&rig, 40);
    rig_stop(&rig);
}

static void expect_invalid(const struct descriptor *d, const char *what)
{
    int seen = rig.log.writes_seen;
    struct completion completion = client_call(&rig, &bad, d);
    cr_assert_eq(completion.result, -EINVAL, "%s gave %d", what, completion.result);
    cr_assert_eq(rig.log.writes_seen, seen, "%s reached the log", what);
    good_is_served();
}

Test(hostile, g20_answers_a_descriptor_with_a_wild_field_invalid)
{
    start();
    struct descriptor fine = client_text(&bad, bad_topic, 0, "x");
#define WILD(change)                                                                                         \
    do {                                                                                                     \
        struct descriptor d = fine;                                                                          \
        change;                                                                                              \
        expect_invalid(&d, #change);                                                                         \
    } while (0)
    WILD(d.op = OP_NONE);
    WILD(d.op = OP_CANCEL + 1);
    WILD(d.op = 255);
    WILD(d.level = LEVEL_DURABLE + 1);
    WILD(d.flags = DESCRIPTOR_FIRST);
    WILD(d.flags = 1 << 15);
    WILD(d.number = 1); /* without a producer there are no numbers */
    WILD(d.topic = 0);
    WILD(d.topic = bad_topic + 1);
    WILD(d.topic = UINT32_MAX);
    WILD(d.arena_offset = 8);
    WILD(d.arena_offset = UINT32_MAX - 15);
    WILD(d.arena_offset = MIN_ARENA_BYTES);
    WILD(d.arena_offset = MIN_ARENA_BYTES - 16); /* payload fits, the records behind it do not */
    WILD(d.payload_bytes = 15);
    WILD(d.payload_bytes = MIN_ARENA_BYTES + 16);
    WILD(d.payload_bytes = UINT32_MAX - 15);
    WILD(d.entries = MAX_BATCH_ENTRIES + 1);
    WILD(d.entries = UINT32_MAX);
    WILD(d.op = OP_APPEND; d.entries = 0);
    WILD(d.op = OP_APPEND; d.entries = 2);
    WILD(d.op = OP_OPEN; d.payload_bytes = 0);
    WILD(d.op = OP_OPEN; d.payload_bytes = MAX_TOPIC_NAME + 1);
    WILD(d.op = OP_OPEN; d.arena_offset = MIN_ARENA_BYTES - 1);
    WILD(d.op = OP_OPEN; d.flags = DESCRIPTOR_FOLLOW);
    WILD(d.op = OP_CLOSE; d.topic = 77);
    WILD(d.op = OP_CHUNK; d.stream = 5);                            /* no such stream */
    WILD(d.op = OP_CHUNK; d.flags = DESCRIPTOR_FIRST; d.chunk = 1); /* begins in the middle */
    WILD(d.op = OP_CHUNK; d.flags = DESCRIPTOR_FIRST; d.payload_bytes = MAX_CHUNK_PAYLOAD + 16);
    WILD(d.op = OP_READ; d.topic = 0);
    WILD(d.op = OP_READ; d.max_entries = MAX_BATCH_ENTRIES + 1);
    WILD(d.op = OP_READ; d.flags = DESCRIPTOR_CREATE);
    WILD(d.op = OP_TOPICS; d.flags = DESCRIPTOR_FOLLOW);
    cr_assert_not(client_ended(&bad));
    struct completion completion = client_call(&rig, &bad, &fine);
    cr_assert_eq(completion.result, 0, "and its own good descriptors are still taken");
    stop();
}

Test(hostile, g20_ends_only_the_connection_whose_tail_is_wild)
{
    static const uint32_t jumps[] = {16, 17, 0x80000000u, 0xffffffffu};
    start();
    for (size_t i = 0; i < array_count(jumps); i++) {
        word_store_release(&bad.words->sq_tail, bad.sq.mirror.p_tail + jumps[i]);
        uint64_t one = 1;
        cr_assert_eq(write(bad.doorbell, &one, sizeof one), sizeof one);
        rig_turn(&rig, 40);
        cr_assert(client_ended(&bad), "tail + %u", jumps[i]);
        cr_assert_eq(server_values(rig.server)->session_ended_hostile, i + 1);
        cr_assert_eq(fake_topic(&rig.log, "bad")->count, 0);
        good_is_served();
        client_close(&bad);
        client_connect(&rig, &bad);
    }
    stop();
}

Test(hostile, g20_ends_a_connection_whose_reaped_index_is_wild)
{
    start();
    word_store_release(&bad.words->cq_head, bad.cq.mirror.c_head + 1000);
    struct descriptor d = client_text(&bad, bad_topic, 0, "x");
    for (int i = 0; i < 15; i++)
        client_push(&bad, &d);
    rig_turn(&rig, 40);
    cr_assert(client_ended(&bad));
    cr_assert_eq(server_values(rig.server)->session_ended_hostile, 1);
    stop();
}

Test(hostile, g20_ends_a_connection_that_goes_over_its_credit)
{
    start();
    struct descriptor d = client_text(&bad, bad_topic, 0, "x");
    d.op = OP_NONE; /* answered at once, never reaped */
    for (int i = 0; i < 15; i++)
        client_push(&bad, &d);
    rig_turn(&rig, 40);
    cr_assert_not(client_ended(&bad), "15 of 15 is fine");
    client_push(&bad, &d);
    rig_turn(&rig, 40);
    cr_assert(client_ended(&bad));
    cr_assert_eq(server_values(rig.server)->session_ended_hostile, 1);
    stop();
}

/* Before it has cost a completion that there is no room for. */
Test(hostile, g20_ends_a_connection_over_its_credit_while_the_log_has_answered_nothing)
{
    start();
    struct descriptor d = client_text(&bad, bad_topic, 0, "x");
    rig.log.hold_answers = true;
    for (int i = 0; i < 15; i++)
        client_push(&bad, &d);
    rig_turn(&rig, 40);
    cr_assert_not(client_ended(&bad), "15 of 15 is fine");
    client_push(&bad, &d);
    rig_turn(&rig, 40);
    cr_assert(client_ended(&bad));
    rig.log.hold_answers = false;
    stop();
}

Test(hostile, g20_a_closed_topic_number_is_nobodys_though_the_log_still_holds_a_write_of_it)
{
    start();
    struct completion completion;
    struct descriptor d = client_text(&bad, bad_topic, 0, "x"),
                      close_it = {.op = OP_CLOSE, .topic = bad_topic};
    rig.log.hold_answers = true;
    client_push(&bad, &d);
    rig_turn(&rig, 20);
    cr_assert_eq(client_call(&rig, &bad, &close_it).result, 0);
    d.user_data = 7;
    cr_assert_eq(client_call(&rig, &bad, &d).result, -EINVAL);
    rig.log.hold_answers = false;
    rig_turn(&rig, 20);
    cr_assert(client_pop(&bad, &completion) && completion.result == 0, "the first one was published in time");
    stop();
}

Test(hostile, g24_a_connection_has_so_many_topics_open_and_not_one_more)
{
    start();
    memcpy(bad.arena, "bad", 3);
    struct descriptor d = {.op = OP_OPEN, .payload_bytes = 3};
    uint32_t opened = 1; /* one it has */
    struct completion completion;
    while ((completion = client_call(&rig, &bad, &d)).result == 0)
        cr_assert_lt(++opened, MAX_TOPICS_OPEN);
    cr_assert_eq(completion.result, -EDQUOT);
    cr_assert_eq(opened, MAX_TOPICS_OPEN - 1, "number 0 is nobody's");
    stop();
}

/* A child that was left behind has the memory still. */
Test(hostile, g22_what_is_published_after_a_clients_end_is_not_taken)
{
    start();
    struct session *session = TAILQ_FIRST(&rig.server->sessions);
    struct descriptor d = client_text(&bad, bad_topic, 0, "x");
    client_push(&bad, &d);
    session_leave(session);
    client_push(&bad, &d);
    rig_turn(&rig, 40);
    cr_assert_eq(fake_topic(&rig.log, "bad")->count, 1);
    stop();
}

static struct io_functions functions;
static int64_t (*clock_before)(struct io *io);

/* Whoever keeps the memory (a child, say) after the hang-up can write the tail once more. */
static int64_t take_tail_back(struct io *io)
{
    if (rig.server->stopping && bad.socket >= 0) {
        word_store_release(&bad.words->sq_tail, word_load(&bad.broker->sq_head));
        close(bad.socket);
        bad.socket = -1;
    }
    return clock_before(io);
}

Test(hostile, g20_a_tail_that_is_taken_back_does_not_hold_a_stop_up)
{
    start();
    rig.log.refuse = -EAGAIN;
    rig.log.refuse_reason = REASON_MEMORY;
    rig.log.refuse_count = 60; /* the first one is held until the hang-up has been seen */
    for (unsigned i = 0; i < 3; i++) {
        struct descriptor d = client_text(&bad, bad_topic, 0, "x");
        client_push(&bad, &d);
    }
    rig_turn(&rig, 20);
    functions = *rig.io->functions;
    clock_before = functions.now;
    functions.now = take_tail_back;
    rig.io->functions = &functions;
    rig_stop(&rig); /* asserts that it ends within its patience */
    client_close(&bad);
    client_close(&good);
}

Test(hostile, g20_ends_a_connection_that_releases_more_window_than_it_was_given)
{
    start();
    struct descriptor d = client_text(&bad, bad_topic, 0, "x");
    cr_assert_eq(client_call(&rig, &bad, &d).result, 0);
    __atomic_store_n(&bad.words->window_head, 4096, __ATOMIC_RELEASE);
    struct descriptor read = {.op = OP_READ, .topic = bad_topic};
    client_push(&bad, &read);
    rig_turn(&rig, 40);
    cr_assert(client_ended(&bad));
    stop();
}

Test(hostile, g20_records_that_lie_are_the_logs_to_refuse_and_hurt_nobody)
{
    start();
    struct descriptor d = client_text(&bad, bad_topic, 0, "x");
    struct entry_record record = {.length = UINT32_MAX};
    memcpy(bad.arena + d.payload_bytes, &record, sizeof record);
    cr_assert_eq(client_call(&rig, &bad, &d).result, -EINVAL);
    cr_assert_eq(fake_topic(&rig.log, "bad")->count, 0);
    stop();
}

/* Everything a client can write, written at random and as fast as it goes, beside an honest client that
 * checks what it gets. */
static void *scribble(void *argument)
{
    struct client *client = argument;
    uint64_t seed = 12345;
    uint8_t *memory = (uint8_t *)client->words;
    for (int i = 0; i < 400000; i++) {
        seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407;
        uint32_t value = (uint32_t)(seed >> 32);
        switch ((seed >> 20) % 8) {
        case 0:
            __atomic_store_n(&client->words->sq_tail, word_load(&client->broker->sq_head) + value % 16,
                             __ATOMIC_RELEASE);
            break;
        case 1:
            __atomic_store_n(&client->words->wake_at, value, __ATOMIC_RELEASE);
            break;
        case 2:
            __atomic_store_n(&client->words->cq_head, word_load(&client->broker->cq_tail), __ATOMIC_RELEASE);
            break;
        case 3: {
            uint64_t one = 1;
            ssize_t ignored = write(client->doorbell, &one, sizeof one);
            (void)ignored;
            break;
        }
        default:
            __atomic_store_n((uint32_t *)(void *)(memory + LAYOUT_PAGE) + value % 256,
                             (uint32_t)(seed >> 40) & 0x1ffu, __ATOMIC_RELAXED);
        }
        if (i % 50000 == 0)
            (void)fallocate(client->files[0], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                            (off_t)client->sizes.client_file_bytes);
    }
    return NULL;
}

Test(hostile, g20_a_client_that_scribbles_over_its_memory_damages_only_itself, .timeout = 120)
{
    start();
    for (int round = 0; round < 20; round++) {
        pthread_t thread;
        cr_assert_eq(pthread_create(&thread, NULL, scribble, &bad), 0);
        for (int i = 0; i < 500; i++)
            good_is_served();
        cr_assert_eq(pthread_join(thread, NULL), 0);
        if (client_ended(&bad)) {
            client_close(&bad);
            rig_turn(&rig, 40);
            client_connect(&rig, &bad);
        }
    }
    const struct topic *topic = fake_topic(&rig.log, "good");
    cr_assert_eq(topic->count, 20 * 500);
    for (size_t i = 0; i < topic->count; i++)
        cr_assert_eq(memcmp(topic->entries[i].bytes, "honest", 6), 0);
    stop();
}

/* A full eventfd without O_NONBLOCK: a plain write would sleep for ever. */
static void signal_never_blocks(int backend)
{
    rig_start(&rig, NULL, backend);
    client_connect(&rig, &bad);
    client_connect(&rig, &good);
    bad_topic = client_topic(&rig, &bad, "bad");
    good_topic = client_topic(&rig, &good, "good");
    uint64_t value;
    while (read(bad.signal, &value, sizeof value) > 0)
        continue;
    uint64_t most = UINT64_MAX - 1;
    cr_assert_eq(write(bad.signal, &most, sizeof most), sizeof most);
    cr_assert_eq(fcntl(bad.signal, F_SETFL, fcntl(bad.signal, F_GETFL) & ~O_NONBLOCK), 0);
    struct descriptor d = client_text(&bad, bad_topic, 0, "x");
    for (int i = 0; i < 100; i++) {
        word_store(&bad.words->wake_at, bad.cq.mirror.c_head);
        cr_assert_eq(client_call(&rig, &bad, &d).result, 0);
        good_is_served();
    }
    cr_assert_geq(server_values(rig.server)->session_signals, 100);
    stop();
}

Test(hostile, g21_a_full_blocking_eventfd_does_not_stall_the_loop_on_pwrite, .timeout = 20)
{
    signal_never_blocks(IO_BACKEND_PWRITE);
}

Test(hostile, g21_a_full_blocking_eventfd_does_not_stall_the_loop_on_uring, .timeout = 20)
{
    signal_never_blocks(IO_BACKEND_URING);
}

/* The bell is the client's to break: set to the most, blocking, drained by somebody else. */
static void *drain_bell(void *argument)
{
    const struct client *client = argument;
    uint64_t value;
    for (int i = 0; i < 20000; i++)
        if (read(client->doorbell, &value, sizeof value) < 0)
            continue;
    return NULL;
}

Test(hostile, g21_a_client_that_breaks_its_own_bell_hurts_nobody_else, .timeout = 60)
{
    start();
    uint64_t most = UINT64_MAX - 1;
    uint64_t value;
    while (read(bad.doorbell, &value, sizeof value) > 0)
        continue;
    cr_assert_eq(write(bad.doorbell, &most, sizeof most), sizeof most);
    cr_assert_eq(fcntl(bad.doorbell, F_SETFL, fcntl(bad.doorbell, F_GETFL) & ~O_NONBLOCK), 0);
    for (int i = 0; i < 100; i++)
        good_is_served();
    cr_assert_eq(fcntl(bad.doorbell, F_SETFL, fcntl(bad.doorbell, F_GETFL) | O_NONBLOCK), 0);
    while (read(bad.doorbell, &value, sizeof value) > 0)
        continue;
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, drain_bell, &bad), 0);
    struct descriptor d = client_text(&bad, bad_topic, 0, "x");
    struct completion completion;
    bool waits = false; /* a bell that somebody has read may not be heard: its own loss */
    for (int i = 0; i < 200; i++) {
        if (!waits)
            client_push(&bad, &d);
        good_is_served();
        rig_turn(&rig, 150); /* parks it */
        waits = !client_pop(&bad, &completion);
    }
    cr_assert_eq(pthread_join(thread, NULL), 0);
    if (waits) {
        uint64_t one = 1;
        cr_assert_eq(write(bad.doorbell, &one, sizeof one), sizeof one);
        completion = client_answer(&rig, &bad);
    }
    cr_assert_eq(completion.result, 0);
    cr_assert_not(client_ended(&bad));
    stop();
}

/* Nobody takes its welcome out of the socket; its descriptors wait there. */
Test(hostile, g21_clients_that_never_read_their_welcome_hold_nobody_up)
{
    start();
    int fds[100];
    struct hello hello = hello_good();
    for (size_t i = 0; i < array_count(fds); i++) {
        fds[i] = client_dial(&rig);
        cr_assert_eq(send(fds[i], &hello, sizeof hello, MSG_NOSIGNAL), sizeof hello);
        good_is_served();
    }
    rig_turn(&rig, 100);
    cr_assert_eq(server_values(rig.server)->session_connections, 102);
    for (size_t i = 0; i < array_count(fds); i++)
        close(fds[i]);
    rig_turn(&rig, 200);
    cr_assert_eq(server_values(rig.server)->session_connections, 2);
    stop();
}

/* Its completions pile up, its doorbell rings, its socket is never read: all of it stays its own. */
Test(hostile, g21_a_client_that_does_nothing_more_holds_nobody_up)
{
    start();
    struct descriptor d = client_text(&bad, bad_topic, 0, "x");
    for (int i = 0; i < 15; i++)
        client_push(&bad, &d);
    for (int i = 0; i < 1000; i++)
        good_is_served();
    cr_assert_not(client_ended(&bad));
    struct completion completion;
    int answers = 0;
    while (client_pop(&bad, &completion))
        answers++;
    cr_assert_eq(answers, 15);
    stop();
}
