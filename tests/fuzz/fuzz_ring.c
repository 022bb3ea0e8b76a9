/* fuzz_ring.c: the consumer of the submission rings against clients that write what they like, when they
 * like. G20, G21.
 *
 * Up to four connections publish descriptors that are nearly right; each time the broker reads a word, a
 * slot or arena bytes, the input may say something else than what was written there, so that two reads of
 * one place need not agree (kernel.h). Around them: hang-ups, deaths, deadlines, refusals of the log,
 * messages that have no place. The rest of the broker is the real one, down to the log, on a disk in
 * memory.
 *
 * What must hold: R1 to R5 of broker_rig.c, and no assert of the product. */
#include "broker_rig.h"

#define STEPS_MOST 96u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const names[] = {"a", "b", "topic"};

/* Records that add up to the payload. */
static uint32_t write_records(struct peer *peer, uint32_t offset, uint32_t entries, uint32_t length)
{
    uint32_t padded = (uint32_t)align_up(length, PAYLOAD_ALIGN) * entries;
    for (uint32_t i = 0; i < entries; i++) {
        struct entry_record record = {.length = length, .type = (uint8_t)i};
        rig_put(peer, offset + padded + i * sizeof record, &record, sizeof record);
    }
    return padded;
}

static void publish(struct peer *peer, struct input *input)
{
    static const uint8_t ops[16] = {OP_BATCH, OP_APPEND, OP_CHUNK, OP_CHUNK,  OP_READ,  OP_OPEN,
                                    OP_QUERY, OP_CANCEL, OP_ABORT, OP_TOPICS, OP_CLOSE, OP_BATCH,
                                    OP_CHUNK, OP_APPEND, OP_READ,  OP_NONE};
    uint8_t shape = input_byte(input), flags = input_byte(input), count = input_byte(input);
    if (peer->client_slot < 0)
        return;
    struct descriptor d = {.op = ops[shape & 15],
                           .level = (flags >> 6) & 3,
                           .flags = flags & DESCRIPTOR_FLAGS,
                           .topic = 1 + (shape >> 4 & 3u) % 3u,
                           .stream = shape >> 6,
                           .published_ns = 1};
    bool write = d.op == OP_BATCH || d.op == OP_APPEND || d.op == OP_CHUNK;
    if (d.op == OP_OPEN) {
        const char *name = names[count % array_count(names)];
        d.flags = flags & DESCRIPTOR_CREATE;
        d.payload_bytes = (uint32_t)strlen(name);
        rig_put(peer, 0, name, d.payload_bytes);
    } else if (write) {
        uint32_t length = (count >> 4) * (count & 0x80 ? 500u : 7u);
        d.entries = d.op == OP_APPEND ? 1 : count & 15;
        d.arena_offset = 256 + (uint32_t)(input_byte(input) & 7) * 64;
        d.payload_bytes = write_records(peer, d.arena_offset, d.entries, length);
        d.flags &= (uint16_t)(DESCRIPTOR_QUEUE | DESCRIPTOR_NOTIFY |
                              (d.op == OP_CHUNK ? DESCRIPTOR_FIRST | DESCRIPTOR_LAST : 0));
        d.chunk = d.op == OP_CHUNK && (d.flags & DESCRIPTOR_FIRST) == 0 ? input_byte(input) & 3u : 0;
        d.number = peer->hello.name_bytes > 0 ? input_byte(input) & 7u : 0;
        d.deadline_ns = (flags & 0xc0) == 0xc0 ? rig.disk.now + input_byte(input) * INT64_C(100000) : 0;
    } else {
        d.flags &= d.op == OP_READ ? DESCRIPTOR_FOLLOW : 0;
        d.number = d.op == OP_CANCEL ? (uint64_t)(peer - rig.peers) << 32 | (peer->taken_count - (count & 7))
                                     : count;
        d.max_entries = d.op == OP_READ ? count : 0;
    }
    rig_push(peer, &d);
}

/* An honest begin: two connections with topics, a third one later, perhaps with a name. */
static void greet(unsigned how)
{
    for (unsigned i = 0; i < 1u + (how & 1); i++) {
        struct peer *peer = rig_connect();
        if (how & 2) {
            peer->hello.name_bytes = 1;
            peer->hello.name[0] = (char)('p' + i);
        }
    }
    rig_turn(2);
    for (unsigned i = 0; i < 1u + (how & 1); i++)
        for (unsigned n = 0; n < array_count(names); n++) {
            struct descriptor open = {.op = OP_OPEN,
                                      .flags = DESCRIPTOR_CREATE,
                                      .arena_offset = n * 16,
                                      .payload_bytes = (uint32_t)strlen(names[n])};
            rig_put(&rig.peers[i], n * 16, names[n], strlen(names[n]));
            bool pushed = rig_push(&rig.peers[i], &open);
            check_bug(pushed);
        }
    rig_turn(3);
    check_bug(rig.peers[0].topics == array_count(names));
}

static void refuse(uint8_t how)
{
    static const struct {
        int result;
        uint8_t reason;
    } kinds[] = {
        {-EAGAIN, REASON_MEMORY}, {-EAGAIN, REASON_SPACE}, {-ENOSPC, REASON_NONE}, {-EBUSY, REASON_TOPIC}};
    rig.refuse = kinds[how & 3].result;
    rig.refuse_reason = kinds[how & 3].reason;
    rig.refuse_count = 1 + (how >> 2 & 7);
}

static void step(struct input *input)
{
    uint8_t what = input_byte(input);
    struct peer *peer = &rig.peers[what >> 4 & 3];
    switch (what & 15) {
    default:
        publish(peer, input);
        break;
    case 8:
    case 9:
        rig_turn(1);
        break;
    case 10:
        rig_turn(4);
        break;
    case 11:
        rig_ring(peer);
        rig_turn(1);
        break;
    case 12:
        refuse(input_byte(input));
        break;
    case 13:
        rig.disk.now += INT64_C(1000) << (input_byte(input) & 31);
        rig_turn(1);
        break;
    case 14:
        if (what & 0x80) {
            if (peer->socket >= 0)
                rig_hang_up(peer);
        } else if (rig_connect() != NULL) {
            rig_turn(2);
        }
        break;
    case 15:
        if (peer->socket >= 0 && peer->welcomed)
            kernel_at(peer->socket)->ready |= what & 0x80 ? EPOLLIN : EPOLLRDHUP;
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, data + size};
    uint8_t how = input_byte(&input);
    rig_start(&input, how & 3, greet);
    for (unsigned i = 0; i < STEPS_MOST && !input_over(&input); i++)
        step(&input);
    rig_turn(2);
    rig_stop((how & 0xf0) == 0xf0);
    return 0;
}
