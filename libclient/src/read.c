/* read.c: the blocking reads.
 *
 * Happy path
 *   1. The name gives a topic number; one OP_READ asks for entries from a sequence on.
 *   2. The answer says where in the window its runs lie (window.c checks that, runs.c what is in them). The
 *      entries point into the window until they are released.
 *   3. An entry larger than the window comes in pieces: each answer is copied to memory of our own and its
 *      window bytes are free at once; the next OP_READ asks for the rest.
 *
 * Following: an OP_READ that the broker keeps pending. When the time is over it is abandoned and OP_CANCEL
 * ends it; if it was answered in that moment, nobody takes the answer: its window bytes are dropped, and the
 * entries are read again next time.
 *
 * Failure modes: -EAGAIN with reason WINDOW while entries are held is the caller's; other -EAGAIN are
 * tried again for MOST_PATIENCE. An answer that is impossible ends the connection: -EPROTO. */
#include "handle.h"

struct read_call {
    struct walrus *handle;
    const char *topic;
    struct known_topic *known;
    uint64_t from;
    uint32_t max_entries, max_bytes;
    bool follow;
    int64_t deadline;
    struct walrus_entries *entries;
    struct assembly assembly;
};

/* It left credit for this. */
static void cancel(struct walrus *handle, uint32_t index)
{
    uint64_t word = walrus__request_word(handle, index);
    walrus__abandon(handle, index);
    if (!walrus__cancel_word(handle, word))
        check_bug(handle->lost != 0);
}

/* One OP_READ. 0 with the answer, or -ETIME, -EINTR, a lost connection. */
static int ask(struct read_call *call, struct completion *completion)
{
    struct walrus *handle = call->handle;
    bool goes_on = call->assembly.buffer != NULL;
    bool follow = call->follow && !goes_on;
    if (handle->lost != 0 || walrus__wait_credits(handle, follow ? 1 + PATIENT_CALL : 1, FOR_EVER) < 0)
        return walrus__fail_lost(handle);
    struct answer answer = {.done = false};
    struct submission submission = {
        .descriptor = {.op = OP_READ,
                       .flags = follow ? DESCRIPTOR_FOLLOW : 0,
                       .topic = call->known->number,
                       .number = call->from,
                       .max_entries = goes_on ? 1 : call->max_entries,
                       .max_bytes = goes_on ? (uint32_t)handle->window_bytes : call->max_bytes,
                       .entry_offset_4k = (uint32_t)(call->assembly.got / LAYOUT_PAGE)},
        .kind = REQUEST_ANSWER,
        .extent = NO_EXTENT,
        .answer = &answer,
    };
    uint32_t index;
    int code = walrus__submit(handle, &submission, &index);
    if (code < 0)
        return code;
    code = walrus__wait_answer(handle, &answer, follow ? call->deadline : FOR_EVER, follow);
    if (code == -ETIME || code == -EINTR) {
        cancel(handle, index);
        return walrus__fail(handle, code, REASON_NONE,
                            code == -ETIME
                                ? "nothing came to topic \"%s\" in time: read again"
                                : "a signal arrived before anything came to topic \"%s\": read again",
                            call->topic);
    }
    check_bug(code == 0 && answer.done);
    *completion = answer.completion;
    return 0;
}

/* Takes an answer apart. 1: entries are there; 0: go on asking; or an error. */
static int take(struct read_call *call, const struct completion *c)
{
    struct walrus *handle = call->handle;
    struct runs runs = {.asked = call->from, .max_entries = call->max_entries};
    if (walrus__window_accept(handle, c, &runs.bytes) < 0)
        return walrus__fail_lost(handle);
    runs.length = c->window_bytes;
    uint64_t got_before = call->assembly.got;
    struct error err = {.code = 0};
    int code = walrus__runs_read(&runs, call->entries, &call->assembly, &err);
    if (code == -EPROTO) {
        walrus__lose(handle, code, "%s; the connection has been ended", err.text);
        return walrus__fail_lost(handle);
    }
    bool in_window = code == 0 && call->entries->heap_count < call->entries->count;
    if (in_window)
        walrus__window_hold(handle, call->entries);
    else
        walrus__window_drop(handle);
    if (code < 0)
        return walrus__fail(handle, code, REASON_NONE, "%s", err.text);
    if (call->entries->count > 0)
        return 1;
    if (call->assembly.buffer != NULL && call->assembly.got > got_before) {
        call->from = call->assembly.entry.sequence;
        return 0;
    }
    walrus__lose(handle, -EPROTO,
                 "the broker answered a read with %d entries and brought none; the connection has been ended",
                 c->result);
    return walrus__fail_lost(handle);
}

/* -EAGAIN: should it be tried again? */
static bool try_again(struct read_call *call, const struct completion *c, uint32_t attempt, int64_t begin)
{
    if (c->reason == REASON_WINDOW && call->handle->reads_oldest != NULL)
        return false;
    return walrus__wait_to_retry(call->handle, attempt, c->retry_after_us, begin);
}

/* Entries into call->entries. Their number, 0 if nothing is there yet, or an error. */
static int read_entries(struct read_call *call)
{
    struct walrus *handle = call->handle;
    int64_t begin = walrus__now();
    uint32_t attempt = 0;
    for (;;) {
        struct completion c = {.result = 0};
        int code = ask(call, &c);
        if (code < 0)
            return code;
        if (c.result == -EAGAIN && try_again(call, &c, attempt++, begin))
            continue;
        if (c.result < 0)
            return handle->lost != 0
                       ? walrus__fail_lost(handle)
                       : walrus__fail_answer(handle, c.result, c.reason, "read of topic", call->topic);
        attempt = 0;
        if (c.result == 0) {
            if (c.window_bytes > 0 || call->assembly.buffer != NULL) {
                walrus__lose(
                    handle, -EPROTO,
                    "the broker answered a read with bytes but no entries, or lost the rest of an entry; the "
                    "connection has been ended");
                return walrus__fail_lost(handle);
            }
            if (c.next_sequence > call->from) {
                call->from = c.next_sequence; /* a gap: what is asked for was burnt */
                continue;
            }
            if (!call->follow)
                return 0;
            if (walrus__now() >= call->deadline)
                return walrus__fail(handle, -ETIME, REASON_NONE,
                                    "nothing came to topic \"%s\" in time: read again", call->topic);
            continue;
        }
        code = take(call, &c);
        if (code < 0)
            return code;
        if (code == 1)
            return (int)call->entries->count;
    }
}

static int check_read(walrus *handle, const char *topic, const struct walrus_read_options *given,
                      struct walrus_read_options *options)
{
    int code = walrus__options(handle, options, sizeof *options, given, "walrus_read_options");
    if (code < 0)
        return code;
    if (options->max_entries > MAX_BATCH_ENTRIES)
        return walrus__fail(handle, -EINVAL, REASON_NONE, "max_entries is %u: a read returns at most %u",
                            options->max_entries, MAX_BATCH_ENTRIES);
    return walrus__check_name(handle, topic);
}

int walrus_batch_read_for_topic(walrus *handle, const char *topic, uint64_t from,
                                const struct walrus_read_options *given, walrus_entries **entries_out)
{
    int code = walrus__enter(handle);
    if (code < 0)
        return code;
    if (entries_out == NULL)
        return walrus__fail(handle, -EINVAL, REASON_NONE, "read: no place for the entries");
    *entries_out = NULL;
    struct walrus_read_options options;
    code = check_read(handle, topic, given, &options);
    if (code < 0)
        return code;
    struct read_call call = {
        .handle = handle,
        .topic = topic,
        .from = from > 0 ? from : 1,
        .max_entries = options.max_entries > 0 ? options.max_entries : MAX_BATCH_ENTRIES,
        .max_bytes = (uint32_t)min_u64(options.max_bytes > 0 ? options.max_bytes : handle->window_bytes,
                                       handle->window_bytes),
        .follow = options.follow_ns != 0,
        .deadline = walrus__deadline(options.follow_ns),
    };
    code = walrus__known_for_call(handle, topic, call.follow, FOR_EVER, &call.known);
    if (code == 0) {
        call.entries = walrus__entries_new(handle);
        code = call.entries != NULL ? read_entries(&call)
                                    : walrus__fail(handle, -ENOMEM, REASON_NONE, "no memory for a read");
    }
    free(call.assembly.buffer);
    if (code > 0)
        *entries_out = call.entries;
    else if (call.entries != NULL)
        walrus__entries_free(call.entries);
    walrus__leave(handle);
    return code;
}
