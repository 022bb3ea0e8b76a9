/* error.c: words for errors (what, where, the way out), option structs, and the proof that walrus.h and
 * shared/ agree. */
#include "handle.h"

_Static_assert(WALRUS_MAX_BATCH_ENTRIES == MAX_BATCH_ENTRIES, "limits.h");
_Static_assert(WALRUS_MAX_BATCH_BYTES == MAX_BATCH_BYTES, "limits.h");
_Static_assert(WALRUS_ENTRY_OVERHEAD == ENTRY_OVERHEAD, "limits.h");
_Static_assert(WALRUS_MAX_TOPIC_NAME == MAX_TOPIC_NAME, "limits.h");
_Static_assert((int)WALRUS_LEVEL_DEFAULT == LEVEL_TOPIC, "layout.h");
_Static_assert((int)WALRUS_LEVEL_ACCEPTED == LEVEL_ACCEPTED, "layout.h");
_Static_assert((int)WALRUS_LEVEL_WRITTEN == LEVEL_WRITTEN, "layout.h");
_Static_assert((int)WALRUS_LEVEL_DURABLE == LEVEL_DURABLE, "layout.h");
_Static_assert((int)WALRUS_REASON_NONE == REASON_NONE, "layout.h");
_Static_assert((int)WALRUS_REASON_TOPIC == REASON_TOPIC, "layout.h");
_Static_assert((int)WALRUS_REASON_RING == REASON_RING, "layout.h");
_Static_assert((int)WALRUS_REASON_ARENA == REASON_ARENA, "layout.h");
_Static_assert((int)WALRUS_REASON_OPEN_BATCH == REASON_OPEN_BATCH, "layout.h");
_Static_assert((int)WALRUS_REASON_MEMORY == REASON_MEMORY, "layout.h");
_Static_assert((int)WALRUS_REASON_SPACE == REASON_SPACE, "layout.h");
_Static_assert((int)WALRUS_REASON_WINDOW == REASON_WINDOW, "layout.h");
_Static_assert((int)WALRUS_REASON_ORDER == REASON_ORDER, "layout.h");
_Static_assert((int)WALRUS_REQUIRE_IO_URING == HELLO_REQUIRE_URING, "message.h");

const char *walrus_version(void)
{
    return WALRUS_VERSION_STRING;
}

const char *walrus_error(const walrus *handle)
{
    if (handle == NULL)
        return "there is no handle: walrus_connect gives one";
    if (walrus__enter(handle) == -EOWNERDEAD)
        return "the handle belongs to the process that forked this one: connect anew";
    return handle->error.text;
}

int walrus_reason(const walrus *handle)
{
    return walrus__enter(handle) == 0 ? handle->reason : WALRUS_REASON_NONE;
}

int walrus__fail(struct walrus *handle, int code, uint8_t reason, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(handle->error.text, sizeof handle->error.text, format, args);
    va_end(args);
    handle->error.code = code;
    handle->reason = reason;
    return code;
}

int walrus__fail_lost(struct walrus *handle)
{
    check_bug(handle->lost != 0);
    handle->error = handle->lost_words;
    handle->reason = REASON_NONE;
    return handle->lost;
}

static const char *words_again(uint8_t reason)
{
    switch (reason) {
    case REASON_TOPIC:
        return "a batch of another handle is in progress on it: try again with the same entries";
    case REASON_RING:
        return "all queue entries are in flight or not reaped: reap, then try again";
    case REASON_ARENA:
        return "the arena is in use by batches in flight: reap, then try again";
    case REASON_OPEN_BATCH:
        return "the arena is in use by this handle's own open batches: submit or abort one";
    case REASON_MEMORY:
        return "the broker's buffers are full: try again a little later";
    case REASON_SPACE:
        return "log space is being prepared: try again a little later";
    case REASON_WINDOW:
        return "the window is full of entries that were read: release some";
    case REASON_ORDER:
        return "a batch before this one was not committed: send that one first";
    default:
        return "not now: try again a little later";
    }
}

static const char *words_of(int code, uint8_t reason)
{
    switch (-code) {
    case EBUSY:
    case EAGAIN:
        return words_again(reason);
    case EINVAL:
        return "the broker found a limit exceeded: fix the call";
    case EDQUOT:
        return "a limit of the broker (topics, or memory for this user) is reached: ask the operator";
    case ENOSPC:
        return "the disk of the broker's data folder is full; nothing was written: try again when space is "
               "free";
    case EIO:
        return "the device failed; nothing was written and never will be";
    case ECANCELED:
        return "it was rolled back before its end";
    case ETIMEDOUT:
        return "its time ran out before the broker took it; nothing was written: try again";
    case ESHUTDOWN:
        return "the broker is stopping; nothing was written: try again when it runs";
    case ESTALE:
        return "a newer holder of this producer name took over: stop";
    case ENOENT:
        return "there is no such topic: its first write creates it";
    case ENODATA:
        return "the sequence asked for is not there any more: read from the earliest one";
    case EBADMSG:
        return "stored data is damaged: look at the broker's log, and at walrus check";
    case ECONNRESET:
        return "the broker is gone and the outcome is not known: connect again and look whether it was "
               "written";
    default:
        return strerror(-code);
    }
}

int walrus__fail_answer(struct walrus *handle, int code, uint8_t reason, const char *what, const char *topic)
{
    char name[4 * 32];
    size_t n = 0;
    if (topic == NULL)
        topic = "";
    for (; *topic != '\0' && n < sizeof name - 4; topic++)
        name[n++] = *topic;
    memcpy(name + n, *topic != '\0' ? "..." : "", *topic != '\0' ? 4 : 1);
    return walrus__fail(handle, code, reason, "%s \"%s\": %s", what, name, words_of(code, reason));
}

int walrus__options(struct walrus *handle, void *known, size_t known_bytes, const void *given,
                    const char *what)
{
    size_t size = 0;
    if (given != NULL)
        memcpy(&size, given, sizeof size); /* every option struct begins with it */
    if (given != NULL && size == known_bytes) {
        memcpy(known, given, known_bytes);
        return 0;
    }
    memset(known, 0, known_bytes);
    memcpy(known, &known_bytes, sizeof known_bytes);
    if (given == NULL)
        return 0;
    if (size < sizeof size)
        goto refuse;
    memcpy(known, given, size < known_bytes ? size : known_bytes);
    memcpy(known, &known_bytes, sizeof known_bytes);
    if (size > LAYOUT_PAGE)
        goto refuse;
    for (size_t i = known_bytes; i < size; i++) {
        if (((const uint8_t *)given)[i] != 0)
            goto refuse;
    }
    return 0;
refuse:
    if (handle == NULL)
        return -EINVAL;
    return walrus__fail(
        handle, -EINVAL, REASON_NONE,
        "%s: size is %zu, this library knows %zu bytes: set it to sizeof the struct and the rest to zero",
        what, size, known_bytes);
}
