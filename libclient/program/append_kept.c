/* append_kept.c: lines into batches whose lines are kept until they are committed, so that a batch can be
 * sent again: --retry and --producer.
 *
 * Happy path: a batch is filled in memory of ours; the blocking call of the library sends it, tries again as
 * --retry says, connects again if the handle has a producer; then the next one is filled.
 *
 * --producer: the batches of the input are numbered 1, 2, ...; the number is said with each. All but the
 * last one have exactly --batch lines, whatever comes when (nothing but the end of the input closes a batch
 * early), so the same input gives the same batches. A run that is repeated asks for the last number that is
 * committed, skips so many batches, and goes on. The last one of these is compared with what is in the
 * topic, as far as the broker still knows where that is: another input, or another --batch, is refused and
 * not mixed in.
 *
 * Failure modes
 *   - refused for longer than --retry allows: 3 or 1, with the words of the last refusal.
 *   - the broker dies: without a producer the batch's lines are unknown. With one the library connects again
 *     and resolves it; if that takes too long, the next run does.
 *   - a batch larger than the arena goes in chunks, which a lost connection rolls back (-ECANCELED): again.
 *   - a signal: with a producer the lines of an unfinished batch are left out (they would be a batch of
 * another length); without one they are committed.
 *
 * Invariant: lines read = committed + kept. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "append.h"
#include "interrupt.h"

#define FIRST_ROOM    ((size_t)64 << 10)
#define LOST_AGAIN_NS INT64_C(60000000000) /* how long a batch that goes in chunks is sent anew */

struct kept {
    struct append *append;
    struct lines lines;
    char *bytes; /* of the batch's lines, one behind the other */
    size_t used, room;
    size_t lengths[WALRUS_MAX_BATCH_ENTRIES];
    struct walrus_slice slices[WALRUS_MAX_BATCH_ENTRIES];
    uint32_t count;
    uint64_t number; /* of the batch that is being filled; 0 without a producer */
    uint64_t last;   /* the last one that an earlier run has committed */
};

/* -------------------------------------------------------------------------------- a batch */

static int keep_line(struct kept *kept, const char *data, size_t length)
{
    if (length > kept->room - kept->used) {
        size_t room = kept->room > 0 ? kept->room : FIRST_ROOM;
        while (room - kept->used < length) {
            if (room > SIZE_MAX / 2)
                return -ENOMEM;
            room *= 2;
        }
        char *bytes = realloc(kept->bytes, room);
        if (bytes == NULL)
            return -ENOMEM;
        kept->bytes = bytes;
        kept->room = room;
    }
    if (length > 0)
        memcpy(kept->bytes + kept->used, data, length);
    kept->used += length;
    kept->lengths[kept->count++] = length;
    return 0;
}

static void fill_slices(struct kept *kept)
{
    size_t at = 0;
    for (uint32_t i = 0; i < kept->count; i++) {
        kept->slices[i] = (struct walrus_slice){kept->bytes + at, kept->lengths[i]};
        at += kept->lengths[i];
    }
}

/* The deadline passed after the broker had taken it: it is decided soon, or the connection is lost. */
static int await_outcome(struct append *append)
{
    struct walrus_completion completion;
    for (;;) {
        int count = walrus_reap(append->handle, &completion, 1);
        if (count != 0)
            return count < 0 ? count : completion.result;
        int rc = walrus_wait(append->handle, 1, -1);
        if (rc < 0 && rc != -EINTR && rc != -ETIME)
            return rc;
    }
}

static int send_batch(struct kept *kept)
{
    struct append *append = kept->append;
    struct walrus_retry retry = {.size = sizeof retry, .max_tries = append->retry.tries};
    struct walrus_write_options options = {.size = sizeof options,
                                           .queue = append->queue,
                                           .deadline_ns = append->retry.time_ns,
                                           .number = kept->number,
                                           .retry = append->retry.given ? &retry : NULL};
    int64_t begin = now_ns();
    int rc;
    fill_slices(kept);
    do {
        rc = walrus_batch_append_for_topic(append->handle, append->common.topic, kept->slices, kept->count,
                                           &options, NULL);
        if (rc == -EINPROGRESS)
            rc = await_outcome(append);
    } while (rc == -ECANCELED && kept->number != 0 && now_ns() - begin < LOST_AGAIN_NS);
    return rc;
}

/* -------------------------------------------------------------------------------- earlier runs */

static int other_input(const struct kept *kept, const char *what)
{
    const struct append *append = kept->append;
    struct shown shown;
    char words[600];
    snprintf(words, sizeof words,
             "batch %" PRIu64 " of producer '%s' %s: give the same input and the same --batch as before, or "
             "another --producer",
             kept->number, show(&shown, append->producer), what);
    return append_failed(append, words, -EINVAL, 0);
}

/* Are the entries from `from` on the batch's lines? 1 yes, 0 no, or a negative errno. */
static int compare_entries(struct kept *kept, uint64_t from)
{
    struct append *append = kept->append;
    uint32_t at = 0;
    while (at < kept->count) {
        struct walrus_read_options options = {.size = sizeof options, .max_entries = kept->count - at};
        walrus_entries *entries = NULL;
        int rc =
            walrus_batch_read_for_topic(append->handle, append->common.topic, from + at, &options, &entries);
        if (rc <= 0)
            return rc < 0 ? rc : -ENODATA;
        struct walrus_entry entry;
        bool same = true;
        for (size_t i = 0; same && at < kept->count && walrus_entries_get(entries, i, &entry) > 0; i++, at++)
            same = entry.length == kept->lengths[at] &&
                   (entry.length == 0 || memcmp(entry.data, kept->slices[at].data, entry.length) == 0);
        walrus_entries_release(entries);
        if (!same)
            return 0;
    }
    return 1;
}

/* The batch that an earlier run has committed last. An exit code. */
static int check_last(struct kept *kept)
{
    struct append *append = kept->append;
    struct walrus_receipt receipt;
    char words[100];
    int rc = walrus_query(append->topic, kept->number, &receipt);
    if (rc < 0)
        return append_call_failed(append, rc, 0);
    if (rc == 0 || receipt.count == 0)
        return EXIT_DONE; /* it is not known any more where it is */
    if (receipt.count != kept->count) {
        snprintf(words, sizeof words, "was committed with %" PRIu64 " lines, this input has %u there",
                 receipt.count, kept->count);
        return other_input(kept, words);
    }
    fill_slices(kept);
    rc = compare_entries(kept, receipt.first_sequence);
    if (rc == 0)
        return other_input(kept, "was committed with other lines than this input has there");
    return EXIT_DONE; /* what cannot be read cannot be compared */
}

/* -------------------------------------------------------------------------------- the input */

/* Commits what is kept, or skips it. An exit code. */
static int close_batch(struct kept *kept)
{
    struct append *append = kept->append;
    uint32_t lines = kept->count;
    if (lines == 0)
        return EXIT_DONE;
    if (kept->number != 0 && kept->number <= kept->last) {
        int code = kept->number == kept->last ? check_last(kept) : EXIT_DONE;
        if (code != EXIT_DONE)
            return code;
    } else {
        int rc = send_batch(kept);
        if (rc < 0)
            return append_call_failed(append, rc, rc == -ECONNRESET || rc == -EPROTO ? lines : 0);
    }
    append->committed += lines;
    kept->number += kept->number != 0;
    kept->count = 0;
    kept->used = 0;
    return EXIT_DONE;
}

static int wait_for_input(struct kept *kept)
{
    struct append *append = kept->append;
    unsigned news = 0;
    int code = append_wait(append, kept->count > 0 ? append->linger_ms : -1, &news);
    if (code != EXIT_DONE || interrupt_number() != 0)
        return code;
    if (news == 0)
        return close_batch(kept);
    if (news & NEWS_BROKER) {
        int rc = append_probe(append);
        if (rc < 0)
            return append_call_failed(append, rc, 0);
    }
    if (!(news & NEWS_INPUT))
        return EXIT_DONE;
    int rc = lines_read(&kept->lines);
    return rc < 0 ? append_input_failed(append, rc) : EXIT_DONE;
}

static int take_lines(struct kept *kept)
{
    const char *data;
    size_t length;
    while (lines_next(&kept->lines, &data, &length) > 0) {
        int rc = keep_line(kept, data, length);
        if (rc < 0)
            return append_failed(kept->append, strerror(-rc), rc, 0);
        int code = kept->count == kept->append->batch_lines ? close_batch(kept) : EXIT_DONE;
        if (code != EXIT_DONE)
            return code;
    }
    return EXIT_DONE;
}

static int finish(struct kept *kept)
{
    struct append *append = kept->append;
    bool ended = kept->lines.ended && kept->lines.start == kept->lines.end;
    int code = ended || kept->number == 0 ? close_batch(kept) : EXIT_DONE;
    if (code != EXIT_DONE)
        return code;
    if (!ended)
        return append_interrupted(append, kept->count > 0 ? ", those of an unfinished batch are not"
                                          : kept->lines.end > kept->lines.start ? UNFINISHED_LINE
                                                                                : "");
    if (kept->number == 0 || kept->number > kept->last)
        return EXIT_DONE;
    return other_input(kept, "is committed already, and this input ends before it");
}

int append_kept(struct append *append)
{
    struct kept *kept = calloc(1, sizeof *kept);
    if (kept == NULL)
        return append_failed(append, strerror(ENOMEM), -ENOMEM, 0);
    kept->append = append;
    kept->lines.fd = append->input;
    if (append->producer != NULL) {
        kept->number = 1;
        kept->last = walrus_topic_last_number(append->topic);
        append->linger_ms = -1; /* time makes no batch */
    }
    int code = EXIT_DONE;
    bool more = true;
    while (code == EXIT_DONE && more) {
        code = take_lines(kept);
        more = !kept->lines.ended && interrupt_number() == 0;
        if (code == EXIT_DONE && more)
            code = wait_for_input(kept);
    }
    if (code == EXIT_DONE)
        code = finish(kept);
    lines_free(&kept->lines);
    free(kept->bytes);
    free(kept);
    return code;
}
