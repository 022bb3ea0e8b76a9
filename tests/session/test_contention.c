/* Handles that queue at a few topics of the real broker and its real log: whole batches, appends, streams,
 * deadlines, cancels, deaths, from a seed. Everything is answered, in order, and what the log holds in the
 * end is what was answered 0, and what the dead had published. */
#include "harness.h"
#include "folder.h"

#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define CLIENTS 5
#define TOPICS  3
#define SLOTS   11 /* of 15 credits: the others are for a stream's chunks and a cancel */
#define ANSWERS 5000
#define CHUNK   4096u

struct slot {
    bool used, may_expire, cancelled;
    uint32_t topic, entries;
    uint64_t order;
};

struct actor {
    struct client client;
    uint32_t numbers[TOPICS];
    struct slot slots[SLOTS];
    uint64_t order;              /* of the last write pushed */
    uint64_t last_order[TOPICS]; /* answered 0 */
    uint64_t last_sequence[TOPICS];
    bool streaming, cancelling;
    uint32_t stream, stream_topic, chunk, chunks, chunks_out;
    bool last_pushed;
};

static struct rig rig; /* of the harness it has a socket, and no server in this process */
static struct actor actors[CLIENTS];
static uint64_t certain[TOPICS], possible[TOPICS];
static uint64_t random_state;
static uint64_t answers, expired, cancelled, deaths, streams;

static uint32_t draw(uint32_t below)
{
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(random_state >> 33) % below;
}

static struct completion wait_for(struct actor *actor)
{
    struct completion completion;
    while (!client_pop(&actor->client, &completion)) /* ends, or the suite's time does */
        sched_yield();
    return completion;
}

static void join(struct actor *actor)
{
    *actor = (struct actor){.stream = 1};
    struct hello hello = hello_good();
    client_say_hello(&rig, &actor->client, &hello, sizeof hello);
    int status;
    while (!client_take_welcome(&actor->client, &status))
        sched_yield();
    cr_assert_eq(status, 0, "%s", actor->client.welcome.text);
    for (uint32_t i = 0; i < TOPICS; i++) {
        actor->client.arena[0] = (uint8_t)('a' + i);
        struct descriptor d = {.op = OP_OPEN, .flags = DESCRIPTOR_CREATE, .payload_bytes = 1};
        client_push(&actor->client, &d);
        struct completion completion = wait_for(actor);
        cr_assert_eq(completion.result, 0);
        actor->numbers[i] = completion.entries;
    }
}

/* ------------------------------------------------------------------------------------- answers */

static void chunk_answered(struct actor *actor, const struct completion *completion)
{
    cr_assert_eq(completion->result, 0, "stream: %d", completion->result);
    actor->chunks_out--;
    if ((completion->flags & COMPLETION_COPIED) != 0)
        return;
    cr_assert_eq(completion->entries, actor->chunks);
    certain[actor->stream_topic] += actor->chunks;
    actor->streaming = false;
    actor->stream++;
    streams++;
}

static void answered(struct actor *actor, const struct completion *completion)
{
    if (completion->user_data == 1000) {
        chunk_answered(actor, completion);
        return;
    }
    if (completion->user_data >= 2000) { /* a cancel */
        struct slot *named = &actor->slots[completion->user_data - 2000];
        actor->cancelling = false;
        if (completion->result == 0)
            cr_assert(named->cancelled, "its answer comes first");
        else
            cr_assert_eq(completion->result, -ENOENT);
        return;
    }
    cr_assert_lt(completion->user_data, SLOTS);
    struct slot *slot = &actor->slots[completion->user_data];
    cr_assert(slot->used);
    slot->used = false;
    if (completion->result == -ETIMEDOUT) {
        cr_assert(slot->may_expire);
        expired++;
    } else if (completion->result == -ECANCELED) {
        slot->cancelled = true;
        cancelled++;
    } else {
        cr_assert_eq(completion->result, 0);
        cr_assert_eq(completion->entries, slot->entries);
        certain[slot->topic] += slot->entries;
        cr_assert_gt(slot->order, actor->last_order[slot->topic], "first come, first served");
        cr_assert_gt(completion->first_sequence, actor->last_sequence[slot->topic]);
        actor->last_order[slot->topic] = slot->order;
        actor->last_sequence[slot->topic] = completion->first_sequence;
    }
}

static bool reap(struct actor *actor)
{
    struct completion completion;
    bool any = false;
    while (client_pop(&actor->client, &completion)) {
        answered(actor, &completion);
        answers += completion.user_data < 2000 && completion.result == 0;
        any = true;
    }
    return any;
}

/* ------------------------------------------------------------------------------------- steps */

static void write_one(struct actor *actor)
{
    static const char *const texts[] = {"one", "two of them", "", "the fourth"};
    for (uint32_t i = 0; i < SLOTS; i++) {
        struct slot *slot = &actor->slots[i];
        if (slot->used || (actor->cancelling && slot->cancelled))
            continue;
        *slot = (struct slot){.used = true,
                              .may_expire = draw(8) == 0,
                              .topic = draw(TOPICS),
                              .entries = 1 + draw(4),
                              .order = ++actor->order};
        bool append = draw(4) == 0;
        if (append)
            slot->entries = 1;
        struct descriptor d =
            client_batch(&actor->client, actor->numbers[slot->topic], i * 256, slot->entries, texts);
        d.op = append ? OP_APPEND : OP_BATCH;
        d.flags = DESCRIPTOR_QUEUE;
        d.user_data = i;
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (slot->may_expire)
            d.deadline_ns = now.tv_sec * INT64_C(1000000000) + now.tv_nsec + draw(1500) * INT64_C(1000);
        client_push(&actor->client, &d);
        return;
    }
}

static void stream_one(struct actor *actor)
{
    if (actor->chunks_out >= 2)
        return;
    if (!actor->streaming) {
        actor->streaming = true;
        actor->last_pushed = false;
        actor->stream_topic = draw(TOPICS);
        actor->chunk = 0;
        actor->chunks = 1 + draw(20);
    }
    if (actor->last_pushed)
        return;
    uint32_t offset = SLOTS * 256 + (actor->chunk % 4) * (CHUNK + 64);
    struct entry_record record = {.length = CHUNK};
    memset(actor->client.arena + offset, 'x', CHUNK);
    memcpy(actor->client.arena + offset + CHUNK, &record, sizeof record);
    actor->last_pushed = actor->chunk + 1 == actor->chunks;
    struct descriptor d = {.op = OP_CHUNK,
                           .topic = actor->numbers[actor->stream_topic],
                           .flags = (uint16_t)((actor->chunk == 0 ? DESCRIPTOR_FIRST | DESCRIPTOR_QUEUE : 0) |
                                               (actor->last_pushed ? DESCRIPTOR_LAST : 0)),
                           .arena_offset = offset,
                           .payload_bytes = CHUNK,
                           .entries = 1,
                           .stream = actor->stream,
                           .chunk = actor->chunk++,
                           .user_data = 1000};
    actor->chunks_out++;
    client_push(&actor->client, &d);
}

static void cancel_one(struct actor *actor)
{
    uint32_t i = draw(SLOTS);
    if (actor->cancelling || !actor->slots[i].used)
        return;
    actor->cancelling = true;
    struct descriptor d = {.op = OP_CANCEL, .number = i, .user_data = 2000 + i};
    client_push(&actor->client, &d);
}

/* Without a word. What it had published counts. */
static void die(struct actor *actor)
{
    reap(actor);
    for (uint32_t i = 0; i < SLOTS; i++) {
        const struct slot *slot = &actor->slots[i];
        if (slot->used && (slot->may_expire || actor->cancelling))
            possible[slot->topic] += slot->entries;
        else if (slot->used)
            certain[slot->topic] += slot->entries;
    }
    if (actor->streaming && actor->last_pushed)
        certain[actor->stream_topic] += actor->chunks;
    client_close(&actor->client);
    deaths++;
    join(actor);
}

static bool idle(const struct actor *actor)
{
    for (uint32_t i = 0; i < SLOTS; i++)
        if (actor->slots[i].used)
            return false;
    return !actor->streaming && !actor->cancelling;
}

static void run(void)
{
    uint64_t next_death = 500;
    while (answers < ANSWERS || streams < 50 || expired < 10 || cancelled < 10 || deaths < 5) {
        struct actor *actor = &actors[draw(CLIENTS)];
        bool any = reap(actor);
        uint32_t what = draw(400);
        if (answers >= next_death) {
            next_death = answers + 200 + draw(600);
            die(actor);
        } else if (what < 240)
            write_one(actor);
        else if (what < 380)
            stream_one(actor);
        else
            cancel_one(actor);
        if (!any)
            sched_yield();
    }
    for (int i = 0; i < CLIENTS; i++)
        while (!idle(&actors[i])) {
            for (int j = 0; j < CLIENTS; j++) {
                reap(&actors[j]);
                if (actors[j].streaming && !actors[j].last_pushed)
                    stream_one(&actors[j]);
            }
            sched_yield();
        }
}

/* ------------------------------------------------------------------------------------- broker */

static pid_t broker_start(void)
{
    const char *program = getenv("WALRUSD");
    cr_assert_not_null(program, "WALRUSD names the program");
    int out[2];
    cr_assert_eq(pipe(out), 0);
    pid_t pid = fork();
    cr_assert_geq(pid, 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(out[1], STDOUT_FILENO);
        execl(program, "walrusd", "--data-dir", rig.folder, "--socket", rig.socket_path, (char *)NULL);
        _exit(127);
    }
    close(out[1]);
    char byte = 0;
    while (byte != '\n')
        cr_assert_eq(read(out[0], &byte, 1), 1, "it says that it is ready");
    close(out[0]);
    return pid;
}

static uint64_t end_of(struct actor *actor, uint32_t topic)
{
    actor->client.arena[0] = (uint8_t)('a' + topic);
    struct descriptor d = {.op = OP_OPEN, .payload_bytes = 1};
    client_push(&actor->client, &d);
    return wait_for(actor).next_sequence - 1;
}

Test(contention, of_handles_that_come_wait_change_their_minds_and_die_loses_and_adds_nothing, .timeout = 240)
{
    random_state = 20;
    const char *seed = getenv("WALRUS_TEST_SEED");
    if (seed != NULL)
        random_state = strtoull(seed, NULL, 0);
    snprintf(rig.folder, sizeof rig.folder, "/tmp/walrus-contention-XXXXXX");
    cr_assert_not_null(mkdtemp(rig.folder));
    snprintf(rig.socket_path, sizeof rig.socket_path, "%s/socket", rig.folder);
    pid_t pid = broker_start();
    rig.running = true;
    for (int i = 0; i < CLIENTS; i++)
        join(&actors[i]);
    run();
    for (uint32_t topic = 0; topic < TOPICS; topic++) {
        uint64_t end;
        while ((end = end_of(&actors[0], topic)) < certain[topic]) /* what the dead had waiting */
            sched_yield();
        cr_assert_leq(end, certain[topic] + possible[topic]);
    }
    for (int i = 0; i < CLIENTS; i++)
        client_close(&actors[i].client);
    cr_assert_eq(kill(pid, SIGTERM), 0);
    int status;
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    cr_assert_eq(folder_remove(rig.folder), 0);
}
