/* reconnect.c: a connection made anew (WALRUS_RECONNECT).
 *
 *                          what the ring holds is taken; streams fail; the rest stays in flight
 *              hang-up    /
 *      UP --------------------> DOWN <---------------------------------------.
 *      ^                        |  ^ timer: back-off, 2 ms to 1 s, random     \
 *      |     timer: call and    |  |                                           \ refused for now, hang-up,
 *      |     send the hello     v  | no socket, nobody listens                  | or no welcome in time
 *      |                       HELLO -------------------------------------------'
 *      |                        |                                              /
 *      |     welcome: maps and  |                                             / hang-up, or an answer that
 *      |     rings are new      v                                            /  says "not now"
 *      '------------------ REOPENING ---------------------------------------'
 *        every topic has its        OP_OPEN for each topic, as many
 *        new number: what is        names at a time as the arena's
 *        in flight is sent again    begin has room for
 *
 *   From DOWN, HELLO, REOPENING: `lost`, for good, when the time is over and one more attempt was made since
 *   (-ECONNRESET), when the broker refuses
 *   for good (its code), when it breaks the protocol (-EPROTO), or when the producer is somebody else's by
 *   now (-ESTALE). Everything in flight is then answered -ECONNRESET.
 *
 * Happy path
 *   1. The broker's socket hangs up. Answers that it had posted are taken as ever. Chunks that were copied
 *      are gone with it: an open stream has failed, unless its first chunk still waited. Everything else in
 *      flight keeps its request, its extent of the arena, its number.
 *   2. What is submitted from now on gets a request and waits with it.
 *   3. A broker welcomes us. The new client file gets what is owned of the arena at the same offsets, and
 *      takes the place of the old one in our address space, so that pointers given out by reserve stay valid.
 *      The window of the old one stays as long as entries that were read from it are held (window.c).
 *   4. Each topic is opened again: it may have another number, and says what our producer's last number is.
 *   5. In the order of submission: a write that had been sent and whose number is committed is answered 0
 *      with DUPLICATE; the last chunk of a stream that is not committed is answered -ECANCELED; everything
 *      else is sent (again), under the number that it has.
 *
 * The steps are taken inside the calls on the handle, by walrus__reconnect_step, which never waits; who
 * sleeps, in a call or on walrus_fd, is woken by the timer (DOWN), by the socket (HELLO, a hang-up), by the
 * eventfd (REOPENING). Between them nothing is readable.
 *
 * Numbers. Of a producer with a name, or an anonymous one that was resumed, the last number L of a topic
 * covers everything that had been answered 0, unless that was below durable and was lost with the broker:
 * then what is in flight moves down behind L, and its next receipt says EARLIER_LOST. An anonymous producer
 * that never committed anything may be given a new id: L is 0 then, and the numbers in flight are 1, 2, ...
 * as they are. One that is forgotten (-ENODATA) cannot ask any more: its writes are -ECONNRESET, and the
 * handle goes on with a new id.
 *
 * A broker that is told to stop answers -ESHUTDOWN to what came too late, and hangs up soon: that stays in
 * flight until then.
 *
 * Failure modes: as drawn. No memory, no descriptors: as if there were no broker yet. A name is never taken
 * over by a reconnection: who took it from us would lose it again. */
#include "connect.h"

#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define FIRST_PAUSE      (2 * NS_PER_MS)
#define LONGEST_PAUSE    NS_PER_S
#define DEFAULT_PATIENCE (30 * NS_PER_S)
#define DEFAULT_WELCOME  (5 * NS_PER_S)
#define LEAST_CHANCE     (100 * NS_PER_MS)    /* for a welcome, however late it is */
#define REOPEN_WORD      UINT32_C(0x80000000) /* user_data of an OP_OPEN of ours; never a request's index */

/* Of a request: what is needed to send it again. */
struct kept {
    struct descriptor descriptor;
    bool sent;
    bool repeatable; /* of a chunk: the first one of its stream has no answer, so all of it is there */
    struct known_topic *known; /* what descriptor.topic means, found when the numbers change */
};

struct watermarks {
    void *map;
    size_t bytes;
    uint32_t slots;
};

/* Of a topic, in REOPENING. */
struct reopening {
    struct known_topic *known;
    struct completion answer;
};

struct reconnect {
    struct attempt attempt; /* the path, the hello; what the next connection has so far */
    struct error words;     /* why the last attempt failed */
    int timer;
    int64_t patience, welcome_ns; /* options */
    int64_t give_up_at;
    int64_t next; /* when the timer fires */
    int64_t pause;
    uint64_t dispatched; /* of the handle, when the connection came up */
    bool fenced;
    struct watermarks marks; /* of the next connection, while topics have their slots in the old ones */
    struct kept *kept;       /* queue_entries, by the request's index */
    struct reopening *topics;
    uint32_t topic_count, asked, answered;
    uint32_t life;            /* of the connections; in the user_data of our OP_OPENs */
    char opening[NAME_BYTES]; /* the name of the user's OP_OPEN in flight: there is one at most */
};

/* ---------------------------------------------------------------------------------------- life */

/* An anonymous producer is asked for again by its id. */
static void remember_producer(struct walrus *handle)
{
    struct hello *hello = &handle->again->attempt.hello;
    if (hello->name_bytes == 0)
        hello->producer = handle->welcome.producer;
}

int walrus__reconnect_init(struct walrus *handle, const struct attempt *attempt, int64_t reconnect_ns,
                           int64_t timeout_ns)
{
    struct reconnect *again = calloc(1, sizeof *again);
    if (again == NULL)
        goto no_memory;
    handle->again = again;
    again->timer = -1;
    again->attempt = *attempt;
    again->attempt.waits = false;
    again->attempt.err = &again->words;
    again->attempt.hello.flags &= ~(uint32_t)HELLO_TAKE_OVER;
    walrus__attempt_begin(&again->attempt);
    again->patience = reconnect_ns != 0 ? reconnect_ns : DEFAULT_PATIENCE;
    again->welcome_ns = timeout_ns > 0 ? timeout_ns : DEFAULT_WELCOME; /* who is silent is called again */
    again->pause = FIRST_PAUSE;
    remember_producer(handle);
    again->kept = calloc(handle->queue_entries, sizeof *again->kept);
    if (again->kept == NULL)
        goto no_memory;
    again->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN};
    if (again->timer < 0 || epoll_ctl(handle->epoll, EPOLL_CTL_ADD, again->timer, &event) != 0)
        return error_set(attempt->err, -errno, "a timer for connecting again: %s", strerror(errno));
    return 0;

no_memory:
    return error_set(attempt->err, -ENOMEM, "no memory to connect again with %u queue entries",
                     handle->queue_entries);
}

static void marks_release(struct watermarks *marks)
{
    if (marks->map != NULL)
        munmap(marks->map, marks->bytes);
    *marks = (struct watermarks){.map = NULL};
}

void walrus__reconnect_release(struct walrus *handle)
{
    struct reconnect *again = handle->again;
    if (again == NULL)
        return;
    walrus__attempt_release(&again->attempt);
    marks_release(&again->marks);
    walrus__close_fd(&again->timer);
    free(again->topics);
    free(again->kept);
    free(again);
    handle->again = NULL;
}

void walrus__reconnect_fds(const struct walrus *handle, int *socket, int *timer)
{
    *timer = handle->again->timer;
    if (handle->link == LINK_HELLO)
        *socket = handle->again->attempt.socket;
}

/* The timer fires at `when`, and is not readable before. */
static void set_timer(struct reconnect *again, int64_t when)
{
    again->next = when;
    struct itimerspec at = {.it_value = {when / NS_PER_S, when % NS_PER_S}};
    if (when == FOR_EVER)
        at.it_value = (struct timespec){0, 0};
    int rc = timerfd_settime(again->timer, TFD_TIMER_ABSTIME, &at, NULL);
    check_bug(rc == 0);
}

void walrus__reconnect_over(struct walrus *handle)
{
    struct reconnect *again = handle->again;
    if (again == NULL)
        return;
    walrus__attempt_release(&again->attempt);
    set_timer(again, 1); /* long past */
}

void walrus__reconnect_fenced(struct walrus *handle)
{
    if (handle->again != NULL)
        handle->again->fenced = true;
}

void walrus__reconnect_keep(struct walrus *handle, uint32_t index, const struct descriptor *descriptor)
{
    struct reconnect *again = handle->again;
    again->kept[index] = (struct kept){.descriptor = *descriptor, .sent = handle->link == LINK_UP};
    if (descriptor->op == OP_OPEN)
        memcpy(again->opening, handle->arena, NAME_BYTES);
}

bool walrus__reconnect_holds(const struct walrus *handle, uint32_t index)
{
    if (handle->again == NULL)
        return false;
    const struct request *request = &handle->requests[index];
    const struct descriptor *d = &handle->again->kept[index].descriptor;
    bool of_a_stream = d->op == OP_CHUNK && (d->flags & DESCRIPTOR_FIRST) == 0;
    return (request->kind == REQUEST_BATCH || request->kind == REQUEST_ANSWER) && !request->refused &&
           !of_a_stream && d->op != OP_CANCEL;
}

/* ---------------------------------------------------------------------------------------- loss */

static bool is_write(uint8_t op)
{
    return op == OP_APPEND || op == OP_BATCH || op == OP_CHUNK;
}

/* A stream whose first chunk has no answer yet lies in the arena, all that there is of it. */
static void find_repeatable(struct walrus *handle)
{
    struct kept *all = handle->again->kept;
    for (uint32_t i = handle->oldest; i != NO_REQUEST; i = handle->requests[i].later) {
        const struct descriptor *d = &all[i].descriptor;
        bool first = d->op == OP_CHUNK && (d->flags & DESCRIPTOR_FIRST) != 0;
        for (uint32_t k = i; first && k != NO_REQUEST; k = handle->requests[k].later) {
            if (all[k].descriptor.op == OP_CHUNK && all[k].descriptor.stream == d->stream)
                all[k].repeatable = true;
        }
    }
}

static bool stream_is_repeatable(const struct walrus *handle, const struct walrus_batch *batch)
{
    for (uint32_t i = handle->oldest; i != NO_REQUEST; i = handle->requests[i].later) {
        const struct kept *kept = &handle->again->kept[i];
        if (kept->repeatable && kept->descriptor.stream == batch->stream)
            return true;
    }
    return false;
}

/* Chunks in flight, and what nobody waits for, end with their connection. Of a stream whose last chunk was
 * sent, that one decides. */
static void end_unrepeatable(struct walrus *handle)
{
    find_repeatable(handle);
    for (struct walrus_batch *b = handle->open; b != NULL; b = b->next) {
        if (b->streaming && b->chunk > 0 && b->failed == 0 && !stream_is_repeatable(handle, b))
            b->failed = -ECANCELED;
    }
    for (uint32_t i = handle->oldest, later; i != NO_REQUEST; i = later) {
        struct request *request = &handle->requests[i];
        later = request->later;
        struct completion c = {.result = -ECANCELED};
        if (request->refused)
            c = (struct completion){.flags = COMPLETION_TRY_NOW};
        else if (request->kind != REQUEST_CHUNK && request->kind != REQUEST_NOBODY)
            continue;
        else if (request->kind == REQUEST_CHUNK && request->batch->state != BATCH_DROPPED) {
            if (handle->again->kept[i].repeatable)
                continue;
            if (request->batch->state == BATCH_SENT)
                c = (struct completion){.flags = COMPLETION_COPIED};
        }
        walrus__answer_request(handle, i, &c);
    }
}

static void close_epolled(struct walrus *handle, int *fd, bool hang_up)
{
    if (*fd < 0)
        return;
    /* By hand: a forked child may keep the descriptor open, and the epoll set with it. */
    epoll_ctl(handle->epoll, EPOLL_CTL_DEL, *fd, NULL);
    if (hang_up)
        walrus__hang_up(fd);
    else
        walrus__close_fd(fd);
}

static void give_up(struct walrus *handle)
{
    struct reconnect *again = handle->again;
    char words[sizeof again->words.text + 256];
    snprintf(words, sizeof words,
             "the broker is gone, and there was none to go on with for %.3g s; close the handle and connect "
             "again; what was in flight may or may not be written; last: %s",
             (double)again->patience / 1e9, again->words.text);
    walrus__end(handle, -ECONNRESET, words);
}

/* No connection, and the next attempt after a pause. */
static void go_down(struct walrus *handle)
{
    struct reconnect *again = handle->again;
    close_epolled(handle, &handle->socket, true);
    walrus__close_fd(&handle->doorbell);
    handle->link = LINK_DOWN;
    int64_t when = walrus__now() + again->pause / 2 + walrus__random(handle, again->pause / 2);
    again->pause = again->pause < LONGEST_PAUSE / 2 ? 2 * again->pause : LONGEST_PAUSE;
    set_timer(again, when < again->give_up_at ? when : again->give_up_at);
}

/* An attempt came to nothing: another one, if it is not too late. */
static void pause_down(struct walrus *handle)
{
    go_down(handle);
    if (walrus__now() >= handle->again->give_up_at)
        give_up(handle);
}

bool walrus__reconnect_begin(struct walrus *handle, int *code, char *words, size_t size)
{
    struct reconnect *again = handle->again;
    if (again->fenced) {
        *code = -ESTALE;
        snprintf(words, size,
                 "a newer holder of this producer name took over, and the connection is gone: stop");
        return false;
    }
    if (handle->link == LINK_UP) {
        if (handle->dispatched != again->dispatched)
            again->pause = FIRST_PAUSE; /* that one was good for something */
        again->give_up_at = walrus__deadline(again->patience);
        handle->link = LINK_DOWN; /* first of all: what follows comes by here again */
        end_unrepeatable(handle);
    }
    error_set(&again->words, -ECONNRESET, "%s", words);
    go_down(handle);
    return true;
}

/* -------------------------------------------------------------------------------------- attempt */

/* The producer is not known any more: nobody can say what of it was committed. It goes on under a new id. */
static void begin_new_producer(struct walrus *handle)
{
    for (uint32_t i = handle->oldest, later; i != NO_REQUEST; i = later) {
        later = handle->requests[i].later;
        uint8_t op = handle->again->kept[i].descriptor.op;
        if (!is_write(op) && op != OP_QUERY)
            continue;
        struct completion c = {.result = -ECONNRESET};
        walrus__answer_request(handle, i, &c);
    }
    for (struct known_topic *known = handle->known; known != NULL; known = known->next) {
        known->last_number = 0;
        known->next_number = 1;
        known->uncertain = false;
    }
    handle->again->attempt.hello.producer = 0;
    set_timer(handle->again, walrus__now());
}

/* An attempt failed: not now, or never. */
static void attempt_failed(struct walrus *handle, int code, bool refused)
{
    struct reconnect *again = handle->again;
    close_epolled(handle, &again->attempt.socket, true);
    walrus__attempt_release(&again->attempt);
    handle->link = LINK_DOWN;
    if (refused && code == -ENODATA && again->attempt.hello.producer != 0) {
        begin_new_producer(handle);
        return;
    }
    bool never = code == -EPROTO ||
                 (refused && (code == -EACCES || code == -ESTALE || code == -EINVAL || code == -EOPNOTSUPP));
    if (!never) {
        pause_down(handle);
        return;
    }
    char words[sizeof again->words.text];
    memcpy(words, again->words.text, sizeof words);
    walrus__end(handle, code, words);
}

static void call_broker(struct walrus *handle)
{
    struct reconnect *again = handle->again;
    int64_t now = walrus__now(), deadline = walrus__deadline(again->welcome_ns);
    if (deadline > again->give_up_at)
        deadline = again->give_up_at > now + LEAST_CHANCE ? again->give_up_at : now + LEAST_CHANCE;
    again->attempt.deadline = deadline;
    int code = walrus__attempt_call(&again->attempt);
    if (code == 0) {
        struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP};
        if (epoll_ctl(handle->epoll, EPOLL_CTL_ADD, again->attempt.socket, &event) != 0)
            code = error_set(&again->words, -errno, "epoll: %s", strerror(errno));
    }
    if (code < 0) {
        attempt_failed(handle, code, false);
        return;
    }
    handle->link = LINK_HELLO;
    set_timer(again, deadline);
}

/* ---------------------------------------------------------------------------------------- files */

/* The new client file takes the old one's place. */
static int move_client_file(struct walrus *handle)
{
    struct attempt *attempt = &handle->again->attempt;
    uint8_t *arena = (uint8_t *)attempt->client_map + attempt->sizes.arena_at;
    if (handle->stream_taken)
        memcpy(arena + handle->stream_at, handle->arena + handle->stream_at, handle->stream_bytes);
    walrus__arena_copy_owned(&handle->room, arena, handle->arena);
    void *at = mremap(attempt->client_map, attempt->sizes.client_file_bytes, attempt->sizes.client_file_bytes,
                      MREMAP_MAYMOVE | MREMAP_FIXED, handle->client_map);
    if (at == MAP_FAILED)
        return error_set(&handle->again->words, -errno, "the new client file cannot be mapped: %s",
                         strerror(errno));
    attempt->client_map = at;
    return 0;
}

static void set_marks(struct walrus *handle, const struct watermarks *marks)
{
    handle->watermarks = marks->map;
    handle->watermark_map_bytes = marks->bytes;
    handle->watermark_slots = marks->slots;
}

/* Everything of the old connection is replaced, but for the watermarks. What can fail comes first. */
static int take_over_files(struct walrus *handle)
{
    struct attempt *attempt = &handle->again->attempt;
    const struct layout_sizes *sizes = &attempt->sizes;
    if (sizes->queue_entries != handle->queue_entries || sizes->arena_bytes != handle->arena_bytes ||
        sizes->window_bytes != handle->window_bytes)
        return error_set(&handle->again->words, -EPROTO,
                         "%s: the broker gives queue, arena and window other sizes than its predecessor did",
                         attempt->path);
    struct epoll_event event = {.events = EPOLLIN};
    if (epoll_ctl(handle->epoll, EPOLL_CTL_ADD, attempt->fds[FD_SIGNAL], &event) != 0)
        return error_set(&handle->again->words, -errno, "epoll: %s", strerror(errno));
    int code = walrus__window_retire(handle);
    if (code < 0 || (code = move_client_file(handle)) < 0) {
        epoll_ctl(handle->epoll, EPOLL_CTL_DEL, attempt->fds[FD_SIGNAL], NULL);
        return code;
    }
    close_epolled(handle, &handle->signal, false);
    marks_release(&handle->again->marks);
    struct watermarks old = {(void *)(uintptr_t)handle->watermarks, handle->watermark_map_bytes,
                             handle->watermark_slots};
    walrus__adopt(handle, attempt);
    handle->again->marks = (struct watermarks){(void *)(uintptr_t)handle->watermarks,
                                               handle->watermark_map_bytes, handle->watermark_slots};
    set_marks(handle, &old);
    remember_producer(handle);
    handle->waiting.armed_at = 0;
    handle->waiting.signalled = false;
    return 0;
}

/* --------------------------------------------------------------------------------------- topics */

/* The names of the next topics go into the arena's begin, which is nobody else's now. */
static bool ask_names(struct walrus *handle)
{
    struct reconnect *again = handle->again;
    uint32_t at = 0, sent = 0;
    while (again->asked < again->topic_count && sent < handle->queue_entries - 1) {
        const struct known_topic *known = again->topics[again->asked].known;
        if (known->length > NAME_BYTES - at)
            break;
        memcpy(handle->arena + at, known->name, known->length);
        struct descriptor descriptor = {.user_data = (uint64_t)again->life << 32 | REOPEN_WORD | again->asked,
                                        .op = OP_OPEN,
                                        .level = known->wanted_level,
                                        .flags = DESCRIPTOR_CREATE,
                                        .arena_offset = at,
                                        .payload_bytes = known->length,
                                        .published_ns = walrus__now()};
        if (!walrus__push(handle, &descriptor))
            return false;
        at += known->length;
        again->asked++;
        sent++;
    }
    walrus__ring_doorbell(handle);
    return true;
}

static int begin_reopening(struct walrus *handle)
{
    struct reconnect *again = handle->again;
    free(again->topics);
    again->topics = NULL;
    again->topic_count = again->asked = again->answered = 0;
    again->life++;
    for (const struct known_topic *known = handle->known; known != NULL; known = known->next)
        again->topic_count++;
    if (again->topic_count > 0) {
        again->topics = calloc(again->topic_count, sizeof *again->topics);
        if (again->topics == NULL)
            return error_set(&again->words, -ENOMEM, "no memory to open %u topics again", again->topic_count);
    }
    uint32_t i = 0;
    for (struct known_topic *known = handle->known; known != NULL; known = known->next)
        again->topics[i++].known = known;
    return 0;
}

/* An OP_OPEN was refused: not now, or never. */
static void topic_refused(struct walrus *handle, const struct known_topic *known, const struct completion *c)
{
    struct reconnect *again = handle->again;
    walrus__fail_answer(handle, c->result, c->reason, "connected again, but topic", known->name);
    again->words = handle->error;
    switch (-c->result) {
    case EAGAIN:
    case EBUSY:
    case ENOSPC:
    case ESHUTDOWN:
        pause_down(handle);
        return;
    default:
        walrus__end(handle, c->result == -ESTALE ? -ESTALE : -ECONNRESET, again->words.text);
    }
}

static void broke_protocol(struct walrus *handle, const char *what)
{
    char words[256];
    snprintf(words, sizeof words, "%s; the connection has been ended", what);
    walrus__end(handle, -EPROTO, words);
}

/* Takes the answers that are there. True: all topics are open. */
static bool take_answers(struct walrus *handle)
{
    struct reconnect *again = handle->again;
    while (again->answered < again->topic_count) {
        if (again->answered == again->asked && !ask_names(handle)) {
            broke_protocol(handle, "the broker's submission index is impossible");
            return false;
        }
        struct completion c = {0};
        int popped = ring_pop_completion(&handle->completion, &c);
        if (popped == 0)
            return false;
        uint32_t index = (uint32_t)c.user_data & ~REOPEN_WORD;
        if (popped < 0 || c.user_data >> 32 != again->life || ((uint32_t)c.user_data & REOPEN_WORD) == 0 ||
            index >= again->asked || again->topics[index].answer.user_data != 0 || c.result < -4095 ||
            c.result > 0) {
            broke_protocol(handle, "the broker answered something that was not asked, or its completion "
                                   "index is impossible");
            return false;
        }
        if (c.result < 0) {
            topic_refused(handle, again->topics[index].known, &c);
            return false;
        }
        again->topics[index].answer = c;
        again->answered++;
    }
    return true;
}

/* -------------------------------------------------------------------------------- sending again */

/* Before the numbers change: what do they mean? */
static void find_topics_of_requests(struct walrus *handle)
{
    for (uint32_t i = handle->oldest; i != NO_REQUEST; i = handle->requests[i].later) {
        struct kept *kept = &handle->again->kept[i];
        kept->known = handle->requests[i].known;
        if (kept->known != NULL || kept->descriptor.topic == 0)
            continue;
        struct known_topic *known = handle->known;
        while (known != NULL && known->number != kept->descriptor.topic)
            known = known->next;
        kept->known = known;
    }
}

/* What had been answered, below durable, was lost with the broker: numbers in flight move down. */
static void move_numbers(struct walrus *handle, struct known_topic *known, uint64_t last)
{
    uint64_t lost = known->last_number - last;
    for (uint32_t i = handle->oldest; i != NO_REQUEST; i = handle->requests[i].later) {
        struct request *request = &handle->requests[i];
        if (request->known != known || request->number <= known->last_number)
            continue;
        request->number -= lost;
        if (handle->again->kept[i].descriptor.number != 0)
            handle->again->kept[i].descriptor.number -= lost;
    }
    known->next_number -= lost;
    known->last_number = last;
    known->earlier_lost = true;
}

static void renumber(struct walrus *handle)
{
    struct reconnect *again = handle->again;
    struct watermarks old = {(void *)(uintptr_t)handle->watermarks, handle->watermark_map_bytes,
                             handle->watermark_slots};
    set_marks(handle, &again->marks);
    again->marks = (struct watermarks){.map = NULL};
    marks_release(&old);
    for (uint32_t i = 0; i < again->topic_count; i++) {
        struct known_topic *known = again->topics[i].known;
        const struct completion *answer = &again->topics[i].answer;
        if (walrus__numbered(handle) && answer->number < known->last_number)
            move_numbers(handle, known, answer->number);
        walrus__known_opened(handle, known, answer);
    }
}

/* The number that the end of this chunk's stream was sent with; 0 if it was not. */
static uint64_t number_of_stream(const struct walrus *handle, uint32_t index)
{
    const struct kept *all = handle->again->kept;
    for (uint32_t i = index; i != NO_REQUEST; i = handle->requests[i].later) {
        const struct descriptor *d = &all[i].descriptor;
        if (d->op == OP_CHUNK && d->stream == all[index].descriptor.stream &&
            (d->flags & DESCRIPTOR_LAST) != 0 && all[i].sent)
            return d->number;
    }
    return 0;
}

/* Of a write that had been sent: is it decided already? */
static bool decided(const struct walrus *handle, uint32_t index, struct completion *c)
{
    const struct kept *kept = &handle->again->kept[index];
    const struct descriptor *d = &kept->descriptor;
    if (!kept->sent || !is_write(d->op) || kept->known == NULL)
        return false;
    *c = (struct completion){
        .number = d->number, .published_ns = d->published_ns, .level = kept->known->level};
    bool part = d->op == OP_CHUNK && (d->flags & DESCRIPTOR_LAST) == 0;
    uint64_t number = part ? number_of_stream(handle, index) : d->number;
    if (number != 0 && number <= kept->known->last_number) {
        c->flags = part ? COMPLETION_COPIED : COMPLETION_DUPLICATE;
        return true;
    }
    c->result = -ECANCELED;
    return d->op == OP_CHUNK && !kept->repeatable; /* the chunks before it are gone */
}

static bool send_again(struct walrus *handle)
{
    struct reconnect *again = handle->again;
    for (uint32_t i = handle->oldest, later; i != NO_REQUEST; i = later) {
        later = handle->requests[i].later;
        struct kept *kept = &again->kept[i];
        struct completion c;
        if (decided(handle, i, &c)) {
            walrus__answer_request(handle, i, &c);
            continue;
        }
        if (kept->known != NULL)
            kept->descriptor.topic = kept->known->number;
        if (kept->descriptor.op == OP_OPEN)
            memcpy(handle->arena, again->opening, NAME_BYTES);
        if (!walrus__push(handle, &kept->descriptor))
            return false;
        kept->sent = true;
    }
    return true;
}

/* All topics are open: everything in flight is answered or sent, and the connection is as any other. */
static void go_up(struct walrus *handle)
{
    struct reconnect *again = handle->again;
    find_topics_of_requests(handle);
    renumber(handle);
    free(again->topics);
    again->topics = NULL;
    again->topic_count = 0;
    if (!send_again(handle)) {
        broke_protocol(handle, "the broker's submission index is impossible");
        return;
    }
    handle->link = LINK_UP;
    handle->reconnects++;
    again->dispatched = handle->dispatched;
    set_timer(again, FOR_EVER);
    walrus__ring_doorbell(handle);
}

/* ---------------------------------------------------------------------------------------- steps */

static void take_welcome(struct walrus *handle)
{
    struct reconnect *again = handle->again;
    bool refused;
    int code = walrus__attempt_welcome(&again->attempt, &refused);
    if (code == -EAGAIN && !refused) {
        if (walrus__now() >= again->attempt.deadline) {
            error_set(&again->words, -ETIMEDOUT, "%s: the broker did not answer in time",
                      again->attempt.path);
            attempt_failed(handle, -ETIMEDOUT, false);
        }
        return;
    }
    if (code == 0)
        code = walrus__attempt_map(&again->attempt);
    if (code == 0)
        code = take_over_files(handle);
    if (code < 0) {
        attempt_failed(handle, code, refused);
        return;
    }
    walrus__attempt_release(&again->attempt); /* the memfds are mapped */
    handle->link = LINK_REOPENING;
    int64_t least = walrus__deadline(again->welcome_ns);
    set_timer(again, again->give_up_at > least ? again->give_up_at : least);
    code = begin_reopening(handle);
    if (code < 0)
        pause_down(handle);
}

/* What waits for a broker may have a deadline. (Of chunks the broker says it, since it must end their stream.
 * A loop on walrus_fd is not woken for this: it sees it with the next attempt.) */
static void expire(struct walrus *handle, int64_t now)
{
    for (uint32_t i = handle->oldest, later; i != NO_REQUEST; i = later) {
        later = handle->requests[i].later;
        const struct kept *kept = &handle->again->kept[i];
        const struct descriptor *d = &kept->descriptor;
        if (kept->sent || (d->op != OP_APPEND && d->op != OP_BATCH) || d->deadline_ns == 0 ||
            d->deadline_ns > now)
            continue;
        struct completion c = {.result = -ETIMEDOUT, .published_ns = d->published_ns};
        walrus__answer_request(handle, i, &c);
    }
}

void walrus__reconnect_step(struct walrus *handle)
{
    struct reconnect *again = handle->again;
    check_bug(handle->link != LINK_UP && handle->lost == 0);
    int64_t now = walrus__now();
    expire(handle, now);
    if (handle->link == LINK_DOWN && now >= again->next)
        call_broker(handle);
    else if (handle->link == LINK_HELLO)
        take_welcome(handle);
    if (handle->lost != 0 || handle->link != LINK_REOPENING)
        return;
    if (take_answers(handle)) {
        go_up(handle);
    } else if (handle->lost == 0 && handle->link == LINK_REOPENING && now >= again->next) {
        error_set(&again->words, -ETIMEDOUT, "%s: the broker did not open the topics in time",
                  again->attempt.path);
        pause_down(handle);
    }
}
