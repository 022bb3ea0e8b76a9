/* fuzz_broker_file.c: the library against a broker whose file says anything, another thing with each read.
 * G20 the other way round: a broken broker must not crash its clients.
 *
 * The input chooses calls of walrus.h, one after the other, on one handle; each word, completion and run of
 * the window that the library reads may differ from what the broker wrote there, and each time the library
 * waits, the broker answers all, some or nothing, hangs up, talks, or a signal arrives.
 *
 * What must hold, besides C1 to C4 of client_rig.c and the asserts of the product:
 *   - every call ends, with a code that is an errno and words, or a count within what was asked for;
 *   - entries lie inside the window they were read from, or in memory of their own, and their sequences
 *     rise;
 *   - each batch submitted is completed once, and once more if the first completion said so;
 *   - a handle that is lost stays lost. */
#include "client_rig.h"

#include <errno.h>

#define STEPS_MOST   64u
#define BATCHES_MOST 4u
#define READS_HELD   4u
#define SENT_MOST    4096u
#define LONG_NAME    200u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum sent { NOT_SENT, SENT, SENT_REFUSED, SENT_DONE };

static struct user {
    walrus *handle;
    walrus_topic *topics[2];
    walrus_batch *batches[BATCHES_MOST];
    walrus_entries *entries[READS_HELD];
    uint8_t sent[SENT_MOST]; /* by user_data */
    uint32_t sent_count;
    uint32_t undecided;
} user;

static uint8_t payload[48u << 10];

static void check_code(int code)
{
    check_bug(code <= 0 && code >= -4095);
    if (code < 0) {
        const char *words = walrus_error(user.handle);
        check_bug(words != NULL && strlen(words) < 600 && words[0] != '\0');
        check_bug(walrus_reason(user.handle) >= 0 && walrus_reason(user.handle) <= UINT8_MAX);
    }
}

/* ----------------------------------------------------------------------------------------------- writes */

static uint64_t new_word(void)
{
    check_bug(user.sent_count + 1 < SENT_MOST);
    return ++user.sent_count;
}

static void check_completion(const struct walrus_completion *c)
{
    check_bug(c->user_data > 0 && c->user_data <= user.sent_count && c->result <= 0 && c->result >= -4095);
    uint8_t *sent = &user.sent[c->user_data];
    if ((c->receipt.flags & WALRUS_RECEIPT_MORE) != 0) {
        check_bug(*sent == SENT && c->result < 0);
        *sent = SENT_REFUSED;
        return;
    }
    check_bug(*sent == ((c->receipt.flags & WALRUS_RECEIPT_TRY_NOW) != 0 ? SENT_REFUSED : SENT));
    *sent = SENT_DONE;
    user.undecided--;
}

static int reap(int most)
{
    struct walrus_completion completions[8];
    int count = walrus_reap(user.handle, completions, most);
    check_bug(count <= most);
    if (count < 0)
        check_code(count);
    for (int i = 0; i < count; i++)
        check_completion(&completions[i]);
    return count;
}

static void submit(walrus_batch **batch, struct input *input)
{
    uint8_t how = input_byte(input);
    uint64_t word = new_word();
    struct walrus_submit_options options = {.size = sizeof options,
                                            .user_data = word,
                                            .level = how & 3,
                                            .append = how >> 2 & 1,
                                            .queue = how >> 3 & 1,
                                            .notify = how >> 4 & 1,
                                            .deadline_ns = how & 32 ? 1000000 : 0,
                                            .number = how & 64 ? input_byte(input) : 0};
    int code = walrus_batch_submit(*batch, &options);
    check_code(code);
    if (code == 0) {
        user.sent[word] = SENT;
        user.undecided++;
    }
    if (code != -EAGAIN)
        *batch = NULL;
}

static void fill(walrus_batch *batch, struct input *input)
{
    uint8_t how = input_byte(input);
    size_t length = how & 0x40 ? (size_t)input_byte(input) * 190 : how & 31;
    void *place;
    if (how < 0x80) {
        check_code(walrus_batch_add(batch, payload, length));
    } else if (how < 0xa0) {
        check_code(walrus_batch_add_part(batch, payload, length, how & 1));
    } else if (how < 0xc0) {
        check_code(walrus_batch_set_type(batch, how));
    } else if (how < 0xd0) {
        check_code(walrus_batch_set_queue(batch, how & 1));
    } else if (walrus_batch_reserve(batch, length, &place) == 0) {
        kernel_writes(place, length);
        memset(place, 'r', length);
        check_code(walrus_batch_trim(batch, length / 2));
    }
}

static void write_now(struct input *input)
{
    uint8_t how = input_byte(input);
    struct walrus_retry retry = {.size = sizeof retry, .max_tries = 1u + (how & 3)};
    uint64_t word = new_word();
    struct walrus_write_options options = {.size = sizeof options,
                                           .queue = how >> 2 & 1,
                                           .deadline_ns = how & 8 ? 1000000 * (how >> 4) : 0,
                                           .user_data = word,
                                           .retry = how & 16 ? &retry : NULL};
    struct walrus_receipt receipt;
    struct walrus_slice slices[3] = {{payload, how}, {payload, 0}, {payload, how * 100u}};
    int code = how & 32 ? walrus_append_for_topic(user.handle, "blocking", payload, how, &options, &receipt)
                        : walrus_batch_append_for_topic(user.handle, "blocking", slices, how >> 6, &options,
                                                        &receipt);
    check_code(code);
    if (code == -EINPROGRESS) {
        user.sent[word] = SENT;
        user.undecided++;
    }
}

/* ------------------------------------------------------------------------------------------------ reads */

static uint64_t touch(const struct walrus_entry *entry)
{
    uint64_t sum = 0;
    check_bug(entry->length == 0 || entry->data != NULL);
    if (kernel_is_view(entry->data)) {
        uint64_t offset = ((uintptr_t)entry->data - (uintptr_t)kernel_views) % KERNEL_VIEW_BYTES;
        const struct client_rig *rig = &client_rig;
        check_bug(offset >= rig->sizes.window_at && entry->length <= rig->sizes.broker_file_bytes &&
                  offset - rig->sizes.window_at <= rig->sizes.window_bytes - entry->length);
    }
    const uint8_t *bytes = kernel_behind(entry->data);
    for (uint64_t i = 0; i < entry->length; i++)
        sum += bytes[i];
    return sum;
}

static void look_at(const walrus_entries *entries, int count, uint64_t from)
{
    struct walrus_entry entry;
    uint64_t last = from == 0 ? 0 : from - 1;
    check_bug((size_t)count == walrus_entries_count(entries));
    for (int i = 0; i < count; i++) {
        int there = walrus_entries_get(entries, (size_t)i, &entry);
        check_bug(there == 1 && entry.sequence > last);
        last = entry.sequence;
        touch(&entry);
    }
    check_bug(walrus_entries_next(entries) > last);
}

static void read_some(struct input *input)
{
    uint8_t how = input_byte(input);
    walrus_entries **place = &user.entries[how & (READS_HELD - 1)];
    struct walrus_read_options options = {.size = sizeof options,
                                          .max_entries = how >> 2 & 3,
                                          .max_bytes = how & 16 ? 64 : 0,
                                          .follow_ns = how & 32 ? 1000000 : 0};
    uint64_t from = how & 64 ? input_byte(input) : 0;
    walrus_entries_release(*place);
    int count = walrus_batch_read_for_topic(user.handle, "blocking", from, &options, place);
    check_bug(count <= (options.max_entries > 0 ? (int)options.max_entries : (int)WALRUS_MAX_BATCH_ENTRIES));
    check_bug((count > 0) == (*place != NULL));
    if (count > 0)
        look_at(*place, count, from);
    else
        check_code(count);
}

static void list_topics(void)
{
    struct walrus_topic_info info = {.size = sizeof info};
    for (unsigned i = 0; i < 5; i++) {
        uint64_t before = info.id;
        int code = walrus_next_topic(user.handle, &info);
        if (code <= 0) {
            check_code(code);
            return;
        }
        check_bug(code == 1 && info.id > before && strnlen(info.name, sizeof info.name) < sizeof info.name);
    }
}

/* ------------------------------------------------------------------------------------------------ steps */

static void of_topic(walrus_topic **topic, struct input *input, uint8_t how)
{
    char name[LONG_NAME];
    struct walrus_receipt receipt;
    if (*topic == NULL) {
        memset(name, 't', sizeof name);
        int code = walrus_topic_open(user.handle, name, how & 4 ? 1 : LONG_NAME, NULL, topic);
        check_bug((code == 0) == (*topic != NULL));
        check_code(code);
        return;
    }
    switch (how & 3) {
    case 0:
        (void)walrus_topic_last_number(*topic);
        (void)walrus_topic_written_next(*topic);
        (void)walrus_topic_durable_next(*topic);
        break;
    case 1: {
        int code = walrus_query(*topic, input_byte(input), &receipt);
        if (code != 1)
            check_code(code);
        break;
    }
    case 2: {
        uint64_t word = user.sent_count > 0 ? 1 + input_byte(input) % user.sent_count : 1;
        check_code(walrus_cancel(user.handle, word));
        break;
    }
    default:
        if (how & 8) {
            walrus_topic_close(*topic);
            *topic = NULL;
        }
    }
}

static void of_batch(walrus_batch **batch, struct input *input, uint8_t how)
{
    if (*batch == NULL) {
        walrus_topic *topic = user.topics[how & 1];
        if (topic != NULL)
            check_code(walrus_batch_begin(topic, batch));
        return;
    }
    if ((how & 7) == 7) {
        walrus_batch_abort(*batch);
        *batch = NULL;
    } else if ((how & 7) >= 5) {
        submit(batch, input);
    } else {
        fill(*batch, input);
    }
}

static void step(struct input *input)
{
    uint8_t what = input_byte(input), how = what >> 4;
    switch (what & 15) {
    case 0:
    case 1:
    case 2:
    case 3:
        of_batch(&user.batches[what & 3], input, how);
        break;
    case 4:
        of_topic(&user.topics[how & 1], input, how >> 1);
        break;
    case 5:
        write_now(input);
        break;
    case 6:
        read_some(input);
        break;
    case 7:
        list_topics();
        break;
    case 8:
        reap(1 + (how & 7));
        break;
    case 9: {
        int count = (int)(walrus_in_flight(user.handle) > 0 ? how & 1 : 0);
        check_code(walrus_wait(user.handle, count, how & 2 ? 1000000 : 0));
        break;
    }
    case 10: {
        int fd = walrus_fd(user.handle);
        check_bug(fd >= KERNEL_FD || fd < 0);
        break;
    }
    case 11: {
        struct walrus_info info = {.size = sizeof info};
        check_code(walrus_get_info(user.handle, &info));
        break;
    }
    case 12:
        walrus_entries_release(user.entries[how & (READS_HELD - 1)]);
        user.entries[how & (READS_HELD - 1)] = NULL;
        break;
    case 13:
        client_rig_serve(how);
        break;
    default:
        of_topic(&user.topics[how & 1], input, 0);
        break;
    }
}

/* ------------------------------------------------------------------------------------------------- life */

#define SHAPES 8u

static struct {
    struct kernel_saved *kernel;
    struct client_rig rig;
    struct user user;
} saved[SHAPES];

static void begin(unsigned shape)
{
    struct walrus_connect_options options = {.queue_entries = CLIENT_ENTRIES,
                                             .arena_bytes = MIN_ARENA_BYTES,
                                             .window_bytes = MIN_WINDOW_BYTES,
                                             .spin_ns = shape & 4 ? 0 : -1,
                                             .flags = shape & 1 ? WALRUS_RECONNECT : 0,
                                             .reconnect_ns = 5000000000,
                                             .producer = shape & 2 ? "p" : NULL};
    kernel_reset();
    client_rig_begin(NULL);
    user = (struct user){.handle = NULL};
    int code = client_rig_connect(options);
    check_bug(code == 0);
    user.handle = client_rig.handle;
    struct input none = {NULL, NULL};
    of_topic(&user.topics[0], &none, 0);
    check_bug(user.topics[0] != NULL);
    saved[shape].kernel = kernel_save();
    saved[shape].rig = client_rig;
    saved[shape].user = user;
}

/* Whatever was submitted is answered in the end: by the broker, or since it is gone. */
static void settle(void)
{
    for (unsigned i = 0; i < BATCHES_MOST; i++)
        walrus_batch_abort(user.batches[i]);
    for (unsigned i = 0; user.undecided > 0; i++) {
        check_bug(i < 10000);
        int code = walrus_wait(user.handle, 1, -1);
        check_bug(code == 0 || code == -EINTR || code == -EINVAL || code == -ECONNRESET || code == -EPROTO ||
                  code == -ESTALE);
        if (reap(8) < 0)
            break;
    }
    check_bug(user.undecided == 0 && walrus_in_flight(user.handle) == 0);
    for (unsigned i = 0; i < READS_HELD; i++)
        walrus_entries_release(user.entries[i]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, data + size};
    unsigned shape = input_byte(&input) % SHAPES;
    if (saved[shape].kernel == NULL)
        begin(shape);
    struct client_rig keep = saved[shape].rig;
    client_rig_begin(&input); /* the hooks */
    kernel_restore(saved[shape].kernel);
    client_rig = keep;
    client_rig.input = &input;
    client_rig.hostile_welcome = true;
    user = saved[shape].user;
    for (unsigned i = 0; i < STEPS_MOST && !input_over(&input); i++)
        step(&input);
    input.from = input.to; /* what follows is honest, and comes to an end */
    settle();
    client_rig_end();
    return 0;
}
