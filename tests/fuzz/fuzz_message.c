/* fuzz_message.c: the words of the control socket, both ways: hellos and whatever else a client sends to
 * the broker, and the welcome with its descriptors that a broker sends to the library. G20, G21.
 *
 * Byte 0 chooses the side. The broker's: clients come, say hellos that are nearly right (of any length,
 * with names, numbers of producers, wishes to take over), hang up at any moment, send more than they may,
 * publish batches that keep a producer undecided; time passes. The library's: walrus_connect gets a welcome
 * of any length, with 0 to 7 descriptors, of files that are too small, not sealed or no files at all, and a
 * first page that says something else.
 *
 * What must hold: R1 to R5 of broker_rig.c, C1 to C4 of client_rig.c (so nothing is left open on either
 * side), and
 *   - who is welcomed said a hello that is right; who is refused gets words, once; all get one of the two,
 *     or the connection is closed;
 *   - walrus_connect succeeds, or says an errno and words. */
#include "broker_rig.h"
#include "client_rig.h"

#define STEPS_MOST 48u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* -------------------------------------------------------------------------------------------- the broker */

/* What layout.h and message.h allow, once more. */
static void check_welcomed(const struct peer *peer)
{
    static const uint8_t zero[256];
    const struct hello *h = &peer->hello;
    struct layout_sizes sizes = {
        .queue_entries = h->queue_entries, .arena_bytes = h->arena_bytes, .window_bytes = h->window_bytes};
    bool producer = h->name_bytes > 0 || (h->flags & HELLO_PRODUCER) != 0;
    check_bug(peer->hello_bytes == sizeof *h && peer->message_flags == 0 && h->magic == MESSAGE_MAGIC);
    check_bug(h->version_min <= LAYOUT_VERSION && h->version_max >= LAYOUT_VERSION);
    check_bug(h->version_max != LAYOUT_VERSION || h->fingerprint == layout_fingerprint());
    check_bug((h->flags & ~(uint32_t)HELLO_FLAGS) == 0 && (h->flags & HELLO_REQUIRE_URING) == 0);
    check_bug(memcmp(h->reserved, zero, sizeof h->reserved) == 0 && h->name_bytes <= MAX_PRODUCER_NAME);
    check_bug(memcmp(h->name + h->name_bytes, zero, sizeof h->name - h->name_bytes) == 0);
    check_bug(h->producer == 0 || (h->name_bytes == 0 && (h->flags & HELLO_PRODUCER) != 0));
    check_bug((h->flags & HELLO_TAKE_OVER) == 0 || h->name_bytes != 0 || h->producer != 0);
    check_bug(layout_place(&sizes) && peer->welcome.queue_entries == h->queue_entries &&
              peer->welcome.arena_bytes == h->arena_bytes && peer->welcome.window_bytes == h->window_bytes);
    check_bug((peer->welcome.producer != 0) == producer);
}

static void look(void)
{
    for (int i = 0; i < PEERS; i++)
        if (rig.peers[i].welcomed)
            check_welcomed(&rig.peers[i]);
}

static void change_hello(struct hello *hello, struct input *input)
{
    unsigned changes = input_byte(input) & 3;
    while (changes-- > 0) {
        uint64_t place = 4 * (input_byte(input) % (sizeof *hello / 4));
        uint64_t value = input_back_value(input);
        memcpy((uint8_t *)hello + place, &value, min_u64(sizeof value, sizeof *hello - place));
    }
}

static void connect_one(struct input *input)
{
    struct peer *peer = rig_connect();
    uint8_t how = input_byte(input), more = input_byte(input);
    if (peer == NULL)
        return;
    if (how & 1) {
        peer->hello.name_bytes = 1 + (more >> 6);
        memset(peer->hello.name, 'p' + (more & 1), peer->hello.name_bytes);
    } else if (how & 2) {
        peer->hello.producer = more & 7;
        peer->hello.flags |= HELLO_PRODUCER;
    }
    if (how & 4)
        peer->hello.flags |= HELLO_TAKE_OVER;
    if (how & 8)
        peer->hello.queue_entries = 1u << (more & 15);
    if (how & 16)
        peer->hello.arena_bytes = (uint64_t)more << 12;
    if (how & 32)
        change_hello(&peer->hello, input);
    if ((how & 0xc0) == 0x40)
        peer->hello_bytes = (size_t)more * 3 + 1;
    if ((how & 0xc0) == 0x80)
        peer->message_flags = more & 1 ? MSG_CTRUNC : 0;
    if (how >= 0xf0)
        peer->hello_due = false; /* silence */
}

/* A batch, which keeps its producer undecided while the log refuses it. */
static void publish(struct peer *peer, uint8_t how)
{
    static const struct entry_record record = {.length = 16};
    if (peer->client_slot < 0 || !peer->welcomed)
        return;
    struct descriptor d = {.op = OP_OPEN, .flags = DESCRIPTOR_CREATE, .payload_bytes = 1, .published_ns = 1};
    if (peer->topics == 0) {
        rig_put(peer, 0, "t", 1);
    } else {
        d = (struct descriptor){
            .op = how & 1 ? OP_BATCH : OP_CHUNK,
            .flags = how & 1 ? how & DESCRIPTOR_QUEUE : DESCRIPTOR_FIRST | (how & DESCRIPTOR_LAST),
            .topic = 1,
            .arena_offset = 256,
            .payload_bytes = 16,
            .entries = 1,
            .stream = how >> 6,
            .number = peer->welcome.producer != 0 && (how & 3) != 0 ? 1 + (how >> 3 & 3) : 0};
        rig_put(peer, 256 + 16, &record, sizeof record);
    }
    rig_push(peer, &d);
    rig_ring(peer);
}

static void broker_step(struct input *input)
{
    uint8_t what = input_byte(input);
    struct peer *peer = &rig.peers[what >> 3 & 3];
    switch (what & 7) {
    case 0:
    case 1:
        connect_one(input);
        break;
    case 2:
        rig_turn(1 + (what >> 5));
        look();
        break;
    case 3:
        if (peer->hello_bytes != 0)
            rig_hang_up(peer);
        break;
    case 4: /* another message */
        peer->hello_due = true;
        if (peer->socket >= 0)
            kernel_at(peer->socket)->ready |= EPOLLIN;
        break;
    case 5:
        publish(peer, input_byte(input));
        break;
    case 6:
        rig.disk.now += INT64_C(1000000) << (what >> 4);
        rig.refuse = -EAGAIN;
        rig.refuse_reason = REASON_MEMORY;
        rig.refuse_count = what >> 6;
        break;
    default:
        kernel_limit = 12 + (what >> 3);
        break;
    }
}

static void greet(unsigned shape)
{
    if (shape == 0)
        return;
    struct peer *peer = rig_connect();
    peer->hello.name_bytes = 1;
    peer->hello.name[0] = 'p';
    rig_turn(2);
    publish(peer, 0);
    rig_turn(2);
    check_bug(peer->topics == 1);
}

static void the_broker(struct input *input, uint8_t how)
{
    rig_start(input, how >> 1 & 1, greet);
    for (unsigned i = 0; i < STEPS_MOST && !input_over(input); i++)
        broker_step(input);
    rig_turn(4);
    look();
    rig_stop((how & 0xf0) == 0xf0);
}

/* ------------------------------------------------------------------------------------------- the library */

static void the_library(struct input *input, uint8_t how)
{
    struct walrus_connect_options options = {.queue_entries = CLIENT_ENTRIES,
                                             .arena_bytes = MIN_ARENA_BYTES,
                                             .window_bytes = MIN_WINDOW_BYTES,
                                             .timeout_ns = how & 2 ? 1000000 : -1,
                                             .flags = (how & 4 ? WALRUS_RECONNECT : 0u) |
                                                      (how & 8 ? WALRUS_TAKE_OVER : 0u),
                                             .producer = how & 16 ? "name" : NULL};
    kernel_reset();
    client_rig_begin(input);
    client_rig.hostile_welcome = true;
    if (client_rig_connect(options) == 0) {
        struct walrus_info info = {.size = sizeof info};
        int code = walrus_get_info(client_rig.handle, &info);
        check_bug(code == 0 && info.arena_bytes == client_rig.sizes.arena_bytes);
        check_bug(info.queue_entries == CLIENT_ENTRIES && (info.producer != 0) == client_rig.numbered);
    }
    client_rig_end();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, data + size};
    uint8_t how = input_byte(&input);
    if (how & 1)
        the_library(&input, how);
    else
        the_broker(&input, how);
    return 0;
}
