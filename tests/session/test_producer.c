#include "harness.h"

#include <sys/socket.h>
#include <unistd.h>

static struct rig rig;

static struct hello hello_named(const char *name, uint32_t flags)
{
    struct hello hello = hello_good();
    hello.flags = flags;
    hello.name_bytes = (uint32_t)strlen(name);
    memcpy(hello.name, name, strlen(name));
    return hello;
}

static int attach(struct client *client, const char *name, uint32_t flags)
{
    struct hello hello = hello_named(name, flags);
    return client_handshake(&rig, client, &hello, sizeof hello);
}

static int attach_anonymous(struct client *client, uint64_t id)
{
    struct hello hello = hello_good();
    hello.flags = HELLO_PRODUCER;
    hello.producer = id;
    return client_handshake(&rig, client, &hello, sizeof hello);
}

/* Says hello and turns often enough for it to be read. */
static void begin(struct client *client, const char *name, uint32_t flags)
{
    struct hello hello = hello_named(name, flags);
    client_say_hello(&rig, client, &hello, sizeof hello);
    rig_turn(&rig, 40);
}

static bool waits(struct client *client)
{
    int status;
    return !client_take_welcome(client, &status);
}

static int welcomed(struct client *client)
{
    int status = 1;
    for (int i = 0; i < 1000 && !client_take_welcome(client, &status); i++)
        rig_turn(&rig, 1);
    return status;
}

static void expect_words(const struct client *client, const char *words)
{
    cr_assert_not_null(strstr(client->welcome.text, words), "\"%s\" lacks \"%s\"", client->welcome.text,
                       words);
}

/* A batch of the client's producer. */
static struct descriptor numbered(struct client *client, uint32_t topic, uint64_t number)
{
    struct descriptor d = client_text(client, topic, (uint32_t)number * 256, "entry");
    d.number = number;
    d.user_data = number;
    return d;
}

static const struct stat_values *values(void)
{
    return server_values(rig.server);
}

/* ------------------------------------------------------------------------------------- attach */

Test(producer, a_name_is_attached_and_comes_back_with_the_same_id)
{
    rig_start(&rig, NULL, 0);
    struct client client, other;
    cr_assert_eq(attach(&client, "orders", 0), 0);
    uint64_t id = client.welcome.producer;
    cr_assert_neq(id, 0);
    cr_assert_eq(client.welcome.flags, WELCOME_RESUMED);
    cr_assert_eq(attach(&other, "others", HELLO_PRODUCER), 0);
    cr_assert_neq(other.welcome.producer, id);
    cr_assert_eq(values()->session_producers, 2);
    client_close(&client);
    cr_assert_eq(attach(&client, "orders", 0), 0, "its holder is gone: %s", client.welcome.text);
    cr_assert_eq(client.welcome.producer, id);
    client_close(&client);
    client_close(&other);
    rig_turn(&rig, 40);
    cr_assert_eq(values()->session_producers, 0);
    rig_stop(&rig);
}

Test(producer, a_connection_without_one_has_none)
{
    rig_start(&rig, NULL, 0);
    struct client client;
    client_connect(&rig, &client);
    cr_assert_eq(client.welcome.producer, 0);
    cr_assert_eq(client.welcome.flags, 0);
    client_close(&client);
    rig_stop(&rig);
}

Test(producer, an_anonymous_one_goes_on_with_its_id_or_gets_a_new_one)
{
    rig_start(&rig, NULL, 0);
    struct client client;
    cr_assert_eq(attach_anonymous(&client, 0), 0);
    uint64_t id = client.welcome.producer;
    cr_assert_neq(id, 0);
    cr_assert_eq(client.welcome.flags, 0, "a new one");
    rig.log.producers->committed = true;
    client_close(&client);

    cr_assert_eq(attach_anonymous(&client, id), 0, "%s", client.welcome.text);
    cr_assert_eq(client.welcome.producer, id);
    cr_assert_eq(client.welcome.flags, WELCOME_RESUMED);
    struct client second;
    cr_assert_eq(attach_anonymous(&second, id), -EBUSY, "an id has one holder too");
    client_close(&second);
    client_close(&client);

    cr_assert_eq(attach_anonymous(&client, id + 1000), 0, "never committed anything: take a new one");
    cr_assert_neq(client.welcome.producer, id + 1000);
    cr_assert_neq(client.welcome.producer, id);
    cr_assert_eq(client.welcome.flags, 0);
    client_close(&client);

    rig.log.horizon = 5000;
    cr_assert_eq(attach_anonymous(&client, 4999), -ENODATA);
    expect_words(&client, "4999");
    expect_words(&client, "not remembered");
    client_close(&client);
    rig_stop(&rig);
}

Test(producer, g24_what_belongs_to_another_user_is_refused)
{
    rig_start(&rig, NULL, 0);
    struct client client;
    cr_assert_eq(attach(&client, "orders", 0), 0);
    client_close(&client);
    rig_turn(&rig, 40);
    fake_producer(&rig.log, "orders")->uid++;
    cr_assert_eq(attach(&client, "orders", 0), -EACCES);
    expect_words(&client, "\"orders\" belongs to another user");
    client_close(&client);
    cr_assert_eq(attach(&client, "orders", HELLO_TAKE_OVER), -EACCES);
    client_close(&client);
    cr_assert_eq(attach_anonymous(&client, fake_producer(&rig.log, "orders")->id), -EACCES);
    client_close(&client);
    rig.log.max_named = 1;
    cr_assert_eq(attach(&client, "one more", 0), -EDQUOT);
    expect_words(&client, "--max-producers");
    client_close(&client);
    rig_stop(&rig);
}

Test(producer, g20_a_wish_that_makes_no_sense_is_refused)
{
    rig_start(&rig, NULL, 0);
#define WRONG(change, status, words)                                                                         \
    do {                                                                                                     \
        struct hello wrong = hello_named("name", 0);                                                         \
        struct client client;                                                                                \
        change;                                                                                              \
        int rc = client_handshake(&rig, &client, &wrong, sizeof wrong);                                      \
        cr_assert_eq(rc, status, "%s gave %d, \"%s\"", #change, rc, client.welcome.text);                    \
        expect_words(&client, words);                                                                        \
        client_close(&client);                                                                               \
    } while (0)
    WRONG(wrong.name_bytes = MAX_PRODUCER_NAME + 1, -EINVAL, "1 to 255 bytes");
    WRONG(wrong.name_bytes = UINT32_MAX, -EINVAL, "1 to 255 bytes");
    WRONG(wrong.name_bytes = 3, -EPROTO, "behind the producer's name");
    WRONG(wrong.name_bytes = 0, -EPROTO, "behind the producer's name");
    WRONG(wrong.name[255] = 'x', -EPROTO, "behind the producer's name");
    WRONG(wrong.name[1] = '\0', -EINVAL, "NUL");
    WRONG(wrong.name[1] = '\n', -EINVAL, "control");
    WRONG(wrong.producer = 1, -EINVAL, "and a name");
    WRONG(wrong = hello_good(); wrong.producer = 1, -EINVAL, "does not ask");
    WRONG(wrong = hello_good(); wrong.flags = HELLO_TAKE_OVER, -EINVAL, "needs a producer");
    WRONG(wrong = hello_good(); wrong.flags = HELLO_TAKE_OVER | HELLO_PRODUCER, -EINVAL, "needs a producer");
    rig_turn(&rig, 40);
    cr_assert_eq(values()->session_connections, 0);
    cr_assert_eq(fake_references(&rig.log), 0);
    struct client client;
    char name[MAX_PRODUCER_NAME + 1];
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    cr_assert_eq(attach(&client, name, 0), 0, "255 bytes are fine");
    client_close(&client);
    rig_stop(&rig);
}

/* ------------------------------------------------------------------------------------- one holder */

Test(producer, g5_a_living_holder_keeps_it_and_is_named)
{
    rig_start(&rig, NULL, 0);
    struct client holder, other;
    cr_assert_eq(attach(&holder, "orders", 0), 0);
    cr_assert_eq(attach(&other, "orders", 0), -EBUSY);
    char pid[32];
    snprintf(pid, sizeof pid, "pid %d (uid %u)", (int)getpid(), (unsigned)getuid());
    expect_words(&other, pid);
    expect_words(&other, "\"orders\"");
    expect_words(&other, "WALRUS_TAKE_OVER");
    client_close(&other);
    uint32_t topic = client_topic(&rig, &holder, "t");
    struct descriptor d = numbered(&holder, topic, 1);
    cr_assert_eq(client_call(&rig, &holder, &d).result, 0, "the holder notices nothing");
    cr_assert_eq(values()->session_take_overs, 0);
    client_close(&holder);
    rig_stop(&rig);
}

Test(producer, g5_a_dead_holder_is_waited_for_until_its_batches_are_decided)
{
    rig_start(&rig, NULL, 0);
    struct client holder, next, other;
    cr_assert_eq(attach(&holder, "orders", 0), 0);
    uint32_t topic = client_topic(&rig, &holder, "t");
    rig.log.hold_answers = true;
    struct descriptor d = numbered(&holder, topic, 1);
    client_push(&holder, &d);
    client_close(&holder);
    begin(&next, "orders", 0);
    cr_assert(waits(&next), "batch 1 may still commit or fail");
    cr_assert_eq(attach(&other, "orders", 0), -EBUSY, "somebody waits already");
    expect_words(&other, "is being attached");
    client_close(&other);
    rig.log.hold_answers = false;
    cr_assert_eq(welcomed(&next), 0);
    cr_assert_eq(next.welcome.flags, WELCOME_RESUMED);
    cr_assert_eq(fake_topic(&rig.log, "t")->count, 1, "treated as if its producer lived");
    cr_assert_eq(values()->session_take_overs, 0, "nobody was taken over");
    cr_assert_eq(attach(&other, "orders", 0), -EBUSY, "it has a new holder");
    client_close(&other);
    client_close(&next);
    rig_stop(&rig);
}

/* ------------------------------------------------------------------------------------- take-over */

Test(producer, g5_a_take_over_waits_for_what_was_published_and_fences_the_rest)
{
    rig_start(&rig, NULL, 0);
    struct client old, new;
    cr_assert_eq(attach(&old, "orders", 0), 0);
    uint32_t topic = client_topic(&rig, &old, "t");
    rig.log.hold_answers = true;
    for (uint64_t n = 1; n <= 3; n++) {
        struct descriptor d = numbered(&old, topic, n);
        client_push(&old, &d);
    }
    begin(&new, "orders", HELLO_TAKE_OVER);
    cr_assert(waits(&new));
    struct descriptor late = numbered(&old, topic, 4);
    client_push(&old, &late);
    struct completion completion = client_answer(&rig, &old);
    cr_assert_eq(completion.user_data, 4);
    cr_assert_eq(completion.result, -ESTALE, "published after the fence: %d", completion.result);
    cr_assert(waits(&new), "three are not decided");
    rig.log.hold_answers = false;
    cr_assert_eq(welcomed(&new), 0);
    for (uint64_t n = 1; n <= 3; n++) {
        completion = client_answer(&rig, &old);
        cr_assert_eq(completion.user_data, n);
        cr_assert_eq(completion.result, 0, "published before the fence: it is told how it ended");
    }
    cr_assert_eq(fake_topic(&rig.log, "t")->count, 3);
    cr_assert_eq(client_call(&rig, &old, &late).result, -ESTALE, "for ever");
    cr_assert_not(client_ended(&old), "its connection stays");
    cr_assert_eq(values()->session_take_overs, 1);
    cr_assert_eq(values()->session_producers, 1);

    topic = client_topic(&rig, &new, "t");
    struct descriptor d = numbered(&new, topic, 4);
    cr_assert_eq(client_call(&rig, &new, &d).result, 0, "the new one goes on where the old one ended");
    client_close(&old);
    rig_turn(&rig, 40);
    struct client third;
    cr_assert_eq(attach(&third, "orders", 0), -EBUSY, "the end of the old one gives nothing away");
    client_close(&third);
    client_close(&new);
    rig_stop(&rig);
}

Test(producer, g5_a_take_over_takes_what_is_published_and_not_yet_drained)
{
    rig_start(&rig, NULL, 0);
    struct client old, new;
    cr_assert_eq(attach(&old, "orders", 0), 0);
    uint32_t topic = client_topic(&rig, &old, "t");
    rig_turn(&rig, 400); /* parked */
    struct hello hello = hello_named("orders", HELLO_TAKE_OVER);
    client_say_hello(&rig, &new, &hello, sizeof hello);
    for (uint64_t n = 1; n <= 10; n++) {
        struct descriptor d = numbered(&old, topic, n);
        cr_assert_eq(ring_push_descriptor(&old.sq, &d), 1); /* without the doorbell: only the fence looks */
    }
    cr_assert_eq(welcomed(&new), 0);
    cr_assert_eq(fake_topic(&rig.log, "t")->count, 10);
    client_close(&old);
    client_close(&new);
    rig_stop(&rig);
}

Test(producer, a_take_over_of_an_idle_holder_and_of_none_is_at_once)
{
    rig_start(&rig, NULL, 0);
    struct client old, new;
    cr_assert_eq(attach(&old, "orders", HELLO_TAKE_OVER), 0, "nobody holds it");
    cr_assert_eq(values()->session_take_overs, 0);
    cr_assert_eq(attach(&new, "orders", HELLO_TAKE_OVER), 0);
    cr_assert_eq(values()->session_take_overs, 1);
    struct descriptor open = {.op = OP_OPEN, .flags = DESCRIPTOR_CREATE, .payload_bytes = 1};
    old.arena[0] = 't';
    cr_assert_eq(client_call(&rig, &old, &open).result, -ESTALE);
    client_close(&old);
    client_close(&new);
    rig_stop(&rig);
}

Test(producer, a_take_over_rolls_the_old_ones_open_stream_back)
{
    rig_start(&rig, NULL, 0);
    struct client old, new;
    cr_assert_eq(attach(&old, "orders", 0), 0);
    uint32_t topic = client_topic(&rig, &old, "t");
    struct descriptor chunk = client_text(&old, topic, 0, "half");
    chunk.op = OP_CHUNK;
    chunk.flags = DESCRIPTOR_FIRST;
    chunk.stream = 9;
    cr_assert_eq(client_call(&rig, &old, &chunk).result, 0);
    cr_assert_eq(attach(&new, "orders", HELLO_TAKE_OVER), 0);
    cr_assert_eq(rig.log.aborts, 1);
    cr_assert_eq(fake_topic(&rig.log, "t")->batches, 0, "the topic is free");
    chunk.flags = 0;
    chunk.chunk = 1;
    cr_assert_eq(client_call(&rig, &old, &chunk).result, -ESTALE);
    cr_assert_eq(fake_topic(&rig.log, "t")->count, 0);
    struct descriptor abort_it = {.op = OP_ABORT, .stream = 9, .user_data = 5};
    cr_assert_eq(client_call(&rig, &old, &abort_it).result, 0, "to be aborted by its owner");
    client_close(&old);
    client_close(&new);
    rig_stop(&rig);
}

Test(producer, a_take_over_waits_for_a_write_that_is_held_for_memory)
{
    rig_start(&rig, NULL, 0);
    struct client old, new;
    cr_assert_eq(attach(&old, "orders", 0), 0);
    uint32_t topic = client_topic(&rig, &old, "t");
    rig.log.refuse = -EAGAIN;
    rig.log.refuse_reason = REASON_MEMORY;
    rig.log.refuse_count = INT32_MAX;
    for (uint64_t n = 1; n <= 2; n++) {
        struct descriptor d = numbered(&old, topic, n);
        client_push(&old, &d);
    }
    rig_turn(&rig, 40);
    begin(&new, "orders", HELLO_TAKE_OVER);
    cr_assert(waits(&new), "one is held, the next one is still in the ring");
    rig.log.refuse_count = 0;
    cr_assert_eq(welcomed(&new), 0);
    cr_assert_eq(fake_topic(&rig.log, "t")->count, 2);
    client_close(&old);
    client_close(&new);
    rig_stop(&rig);
}

/* The topic is kept by another handle's stream. */
static uint32_t keep_topic_busy(struct client *other)
{
    client_connect(&rig, other);
    uint32_t topic = client_topic(&rig, other, "t");
    struct descriptor chunk = client_text(other, topic, 0, "half");
    chunk.op = OP_CHUNK;
    chunk.flags = DESCRIPTOR_FIRST;
    chunk.stream = 1;
    cr_assert_eq(client_call(&rig, other, &chunk).result, 0);
    return topic;
}

static void end_stream(struct client *other, uint32_t topic)
{
    struct descriptor chunk = client_text(other, topic, 0, "whole");
    chunk.op = OP_CHUNK;
    chunk.flags = DESCRIPTOR_LAST;
    chunk.stream = 1;
    chunk.chunk = 1;
    cr_assert_eq(client_call(&rig, other, &chunk).result, 0);
}

Test(producer, g5_a_take_over_drops_what_waits_for_a_topic)
{
    rig_start(&rig, NULL, 0);
    struct client old, new, other;
    uint32_t busy = keep_topic_busy(&other);
    cr_assert_eq(attach(&old, "orders", 0), 0);
    uint32_t topic = client_topic(&rig, &old, "t");
    struct descriptor queued = numbered(&old, topic, 1);
    queued.flags = DESCRIPTOR_QUEUE;
    client_push(&old, &queued);
    rig_turn(&rig, 40);
    struct completion completion;
    cr_assert_not(client_pop(&old, &completion), "it waits");
    cr_assert_eq(attach(&new, "orders", HELLO_TAKE_OVER), 0, "nothing of it is undecided");
    completion = client_answer(&rig, &old);
    cr_assert_eq(completion.user_data, queued.user_data);
    cr_assert_eq(completion.result, -ESTALE);
    end_stream(&other, busy);
    cr_assert_eq(fake_topic(&rig.log, "t")->count, 2, "both halves of the other one, nothing else");
    topic = client_topic(&rig, &new, "t");
    struct descriptor d = numbered(&new, topic, 1);
    cr_assert_eq(client_call(&rig, &new, &d).result, 0, "its number was not used up");
    client_close(&old);
    client_close(&new);
    client_close(&other);
    rig_stop(&rig);
}

Test(producer, g22_what_a_dead_one_had_queued_is_decided_before_the_next_one_is_welcomed)
{
    rig_start(&rig, NULL, 0);
    struct client old, new, other;
    uint32_t busy = keep_topic_busy(&other);
    cr_assert_eq(attach(&old, "orders", 0), 0);
    uint32_t topic = client_topic(&rig, &old, "t");
    struct descriptor queued = numbered(&old, topic, 1);
    queued.flags = DESCRIPTOR_QUEUE;
    client_push(&old, &queued);
    client_close(&old);
    begin(&new, "orders", 0);
    cr_assert(waits(&new), "it is published: treated as if its producer lived");
    end_stream(&other, busy);
    cr_assert_eq(welcomed(&new), 0);
    cr_assert_eq(fake_topic(&rig.log, "t")->count, 3);
    topic = client_topic(&rig, &new, "t");
    struct descriptor d = numbered(&new, topic, 1);
    struct completion completion = client_call(&rig, &new, &d);
    cr_assert_eq(completion.result, 0);
    cr_assert((completion.flags & COMPLETION_DUPLICATE) != 0);
    client_close(&new);
    client_close(&other);
    rig_stop(&rig);
}

Test(producer, a_take_over_of_a_dead_one_does_not_wait_for_its_topics)
{
    rig_start(&rig, NULL, 0);
    struct client old, new, other;
    uint32_t busy = keep_topic_busy(&other);
    cr_assert_eq(attach(&old, "orders", 0), 0);
    uint32_t topic = client_topic(&rig, &old, "t");
    struct descriptor queued = numbered(&old, topic, 1);
    queued.flags = DESCRIPTOR_QUEUE;
    client_push(&old, &queued);
    client_close(&old);
    cr_assert_eq(attach(&new, "orders", HELLO_TAKE_OVER), 0, "%s", new.welcome.text);
    end_stream(&other, busy);
    cr_assert_eq(fake_topic(&rig.log, "t")->count, 2);
    client_close(&new);
    client_close(&other);
    rig_stop(&rig);
}

Test(producer, a_follow_of_the_old_one_does_not_hold_the_new_one_up)
{
    rig_start(&rig, NULL, 0);
    struct client old, new;
    cr_assert_eq(attach(&old, "orders", 0), 0);
    uint32_t topic = client_topic(&rig, &old, "t");
    struct descriptor follow = {
        .op = OP_READ, .topic = topic, .flags = DESCRIPTOR_FOLLOW, .number = 1, .user_data = 1};
    client_push(&old, &follow);
    rig_turn(&rig, 40);
    cr_assert_eq(attach(&new, "orders", HELLO_TAKE_OVER), 0);
    client_close(&old);
    client_close(&new);
    rig_stop(&rig);
}

Test(producer, several_that_take_over_have_it_one_after_the_other)
{
    rig_start(&rig, NULL, 0);
    struct client first, second, third, plain;
    cr_assert_eq(attach(&first, "orders", 0), 0);
    uint32_t topic = client_topic(&rig, &first, "t");
    rig.log.hold_answers = true;
    struct descriptor d = numbered(&first, topic, 1);
    client_push(&first, &d);
    begin(&second, "orders", HELLO_TAKE_OVER);
    begin(&third, "orders", HELLO_TAKE_OVER);
    cr_assert(waits(&second));
    cr_assert(waits(&third));
    cr_assert_eq(attach(&plain, "orders", 0), -EBUSY);
    client_close(&plain);
    rig.log.hold_answers = false;
    cr_assert_eq(welcomed(&second), 0);
    cr_assert_eq(welcomed(&third), 0);
    cr_assert_eq(client_call(&rig, &second, &d).result, -ESTALE, "it had it for a moment");
    cr_assert_eq(values()->session_take_overs, 2);
    topic = client_topic(&rig, &third, "t");
    d = numbered(&third, topic, 2);
    cr_assert_eq(client_call(&rig, &third, &d).result, 0);
    client_close(&first);
    client_close(&second);
    client_close(&third);
    rig_stop(&rig);
}

/* ------------------------------------------------------------------------------------- waiting ends */

static struct client holder;

/* A holder with a batch that is not decided. */
static void start_undecided(const struct server_options *options)
{
    rig_start(&rig, options, 0);
    cr_assert_eq(attach(&holder, "orders", 0), 0);
    uint32_t topic = client_topic(&rig, &holder, "t");
    rig.log.hold_answers = true;
    struct descriptor d = numbered(&holder, topic, 1);
    client_push(&holder, &d);
    rig_turn(&rig, 40);
}

Test(producer, g25_one_that_hangs_up_while_it_waits_is_forgotten)
{
    start_undecided(NULL);
    int before = open_descriptors();
    struct client quitter, talker, patient;
    begin(&quitter, "orders", HELLO_TAKE_OVER);
    cr_assert(waits(&quitter));
    begin(&talker, "orders", HELLO_TAKE_OVER);
    cr_assert(waits(&talker));
    client_close(&quitter);
    cr_assert_eq(send(talker.socket, "more", 4, MSG_NOSIGNAL), 4);
    cr_assert_eq(welcomed(&talker), -EPROTO, "it has said all that it may say");
    client_close(&talker);
    rig_turn(&rig, 40);
    cr_assert_eq(open_descriptors(), before);
    cr_assert_eq(rig.server->connections, 1);
    cr_assert(TAILQ_EMPTY(&rig.server->contested));
    begin(&patient, "orders", 0);
    cr_assert(waits(&patient), "the old one is fenced already, so this one has nobody to ask");
    rig.log.hold_answers = false;
    cr_assert_eq(welcomed(&patient), 0);
    client_close(&holder);
    client_close(&patient);
    rig_stop(&rig);
}

Test(producer, g25_one_that_is_gone_when_its_turn_comes_leaves_it_to_the_next)
{
    start_undecided(NULL);
    struct client gone[3], next;
    for (int i = 0; i < 3; i++)
        begin(&gone[i], "orders", HELLO_TAKE_OVER);
    begin(&next, "orders", HELLO_TAKE_OVER);
    rig_turn(&rig, 16); /* the epoll set was looked at just now: the hang-ups are not seen yet */
    for (int i = 0; i < 3; i++)
        client_close(&gone[i]);
    rig.log.hold_answers = false;
    cr_assert_eq(welcomed(&next), 0);
    client_close(&holder);
    rig_turn(&rig, 40);
    cr_assert_eq(values()->session_connections, 1);
    client_close(&next);
    rig_stop(&rig);
}

Test(producer, the_wait_for_a_holder_has_an_end)
{
    struct server_options options = {.attach_ns = 1};
    start_undecided(&options);
    struct client client;
    begin(&client, "orders", HELLO_TAKE_OVER);
    cr_assert_eq(welcomed(&client), -EBUSY);
    expect_words(&client, "not decided yet");
    cr_assert_eq(values()->session_handshakes_expired, 1);
    client_close(&client);
    rig.log.hold_answers = false;
    cr_assert_eq(attach(&client, "orders", 0), 0, "%s", client.welcome.text);
    client_close(&client);
    client_close(&holder);
    rig_stop(&rig);
}

Test(producer, a_stop_refuses_those_who_wait)
{
    start_undecided(NULL);
    struct client client;
    begin(&client, "orders", HELLO_TAKE_OVER);
    cr_assert(waits(&client));
    rig_stop(&rig);
    int status;
    cr_assert(client_take_welcome(&client, &status));
    cr_assert_eq(status, -ESHUTDOWN);
    client_close(&client);
    client_close(&holder);
}

Test(producer, g20_a_holder_that_breaks_the_protocol_is_no_obstacle)
{
    rig_start(&rig, NULL, 0);
    struct client client;
    cr_assert_eq(attach(&holder, "orders", 0), 0);
    rig_turn(&rig, 400);
    word_store_release(&holder.words->sq_tail, holder.sq.mirror.p_tail + 1000);
    cr_assert_eq(attach(&client, "orders", HELLO_TAKE_OVER), 0);
    cr_assert(client_ended(&holder));
    cr_assert_eq(values()->session_ended_hostile, 1);
    client_close(&holder);
    client_close(&client);
    rig_stop(&rig);
}

Test(producer, g24_limits_are_looked_at_again_after_the_wait)
{
    struct hello hello = hello_named("orders", HELLO_TAKE_OVER);
    struct server_options options = {.max_queue = 1000, .max_queue_of_uid = 64};
    start_undecided(&options); /* 16 of 64 */
    struct client large, small, other;
    hello.queue_entries = 32;
    client_say_hello(&rig, &large, &hello, sizeof hello);
    rig_turn(&rig, 40);
    begin(&small, "orders", HELLO_TAKE_OVER);
    cr_assert(waits(&large));
    cr_assert(waits(&small));
    cr_assert_eq(attach(&other, "unrelated", 0), 0); /* 32 of 64 */
    struct client more;
    cr_assert_eq(attach(&more, "unrelated too", 0), 0); /* 48 of 64 */
    rig.log.hold_answers = false;
    cr_assert_eq(welcomed(&large), -EDQUOT);
    expect_words(&large, "in flight");
    cr_assert_eq(welcomed(&small), 0, "the next one in the row: %s", small.welcome.text);
    client_close(&holder);
    client_close(&large);
    client_close(&small);
    client_close(&other);
    client_close(&more);
    rig_stop(&rig);
}
