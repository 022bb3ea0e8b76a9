/* fault.c: a disk with a will of its own, for tests.
 *
 * Happy path: submit makes a shadow of the op and submits that to the inner io; when the shadow is done, its
 * result goes to the op, which completes in this io's wait. A fault changes the shadow before, or the result
 * after, or leaves the inner io out of it.
 *
 * Invariants: `done` of an op is called from this io's wait only. A held op counts as in flight, so its
 * buffer and its file stay the back end's. Memory is never short here: that would be the test's machine, and
 * stops it. */
#include "fault.h"

struct shadow {
    struct io_op inner; /* first: what the inner io sees */
    struct io_op *op;
    struct faulty *faulty;
    int64_t forced; /* FAULT_FAIL_AFTER: the result instead; 0: none */
    struct shadow *next;
};

struct shadows {
    struct shadow *first, *last;
};

struct rule {
    struct fault fault;
    bool active;
    uint64_t seen;
    bool hold;
    struct shadows held;
    unsigned held_count;
    uint64_t count, bytes;
};

struct faulty {
    struct io io; /* first */
    struct io *inner;
    struct rule rules[IO_KIND_COUNT];
    struct shadows ready; /* done, to be completed by the next wait */
};

static struct faulty *faulty_of(const struct io *io)
{
    return (struct faulty *)(uintptr_t)io;
}

static void push(struct shadows *list, struct shadow *shadow)
{
    shadow->next = NULL;
    if (list->first == NULL)
        list->first = shadow;
    else
        list->last->next = shadow;
    list->last = shadow;
}

static struct shadow *pop(struct shadows *list)
{
    struct shadow *shadow = list->first;
    if (shadow != NULL)
        list->first = shadow->next;
    return shadow;
}

/* ---------------------------------------------------------------------------------------------------- ops */

static void done_or_held(struct shadow *shadow)
{
    struct rule *rule = &shadow->faulty->rules[shadow->inner.kind];
    if (!rule->hold) {
        push(&shadow->faulty->ready, shadow);
        return;
    }
    push(&rule->held, shadow);
    rule->held_count++;
}

static void inner_done(struct io_op *inner)
{
    struct shadow *shadow = inner->owner;
    if (shadow->forced != 0)
        inner->result = shadow->forced;
    done_or_held(shadow);
}

/* The fault this op meets, or NULL. */
static const struct fault *fault_of(struct rule *rule, const struct io_op *op)
{
    const struct fault *fault = &rule->fault;
    if (!rule->active || (fault->only_background && !op->background) ||
        (fault->only_foreground && op->background))
        return NULL;
    rule->seen++;
    return rule->seen == fault->nth || (rule->seen > fault->nth && fault->from_then_on) ? fault : NULL;
}

static void faulty_submit(struct io *io, struct io_op *op)
{
    struct faulty *faulty = faulty_of(io);
    check_bug(op->kind < IO_KIND_COUNT);
    struct rule *rule = &faulty->rules[op->kind];
    rule->count++;
    if (op->kind == IO_READ || op->kind == IO_WRITE)
        rule->bytes += op->length;
    struct shadow *shadow = calloc(1, sizeof *shadow);
    check_bug(shadow != NULL);
    shadow->inner = *op;
    shadow->inner.done = inner_done;
    shadow->inner.owner = shadow;
    shadow->op = op;
    shadow->faulty = faulty;
    const struct fault *fault = fault_of(rule, op);
    bool pass = true;
    if (fault != NULL && fault->action == FAULT_FAIL_BEFORE) {
        shadow->inner.result = -fault->error;
        pass = false;
    } else if (fault != NULL && fault->action == FAULT_FAIL_AFTER) {
        shadow->forced = -fault->error;
    } else if (fault != NULL) {
        shadow->inner.length = min_u64(fault->bytes, op->length);
        shadow->inner.result = 0;
        pass = shadow->inner.length > 0;
    }
    if (pass)
        io_submit(faulty->inner, &shadow->inner);
    else
        done_or_held(shadow);
}

static void faulty_kick(struct io *io)
{
    io_kick(faulty_of(io)->inner);
}

static int faulty_wait(struct io *io, int64_t timeout_ns)
{
    struct faulty *faulty = faulty_of(io);
    int64_t now = io_now(io), deadline = timeout_ns > INT64_MAX - now ? INT64_MAX : now + timeout_ns;
    for (int64_t left = timeout_ns;;) {
        int inner = io_wait(faulty->inner, faulty->ready.first != NULL ? 0 : left);
        io->watch_ready = faulty->inner->watch_ready;
        int count = 0;
        struct shadows ready = faulty->ready; /* not what `done` adds: as the real ones do */
        faulty->ready = (struct shadows){0};
        struct shadow *shadow;
        while ((shadow = pop(&ready)) != NULL) {
            struct io_op *op = shadow->op;
            op->file = shadow->inner.file;
            io_complete(io, op, shadow->inner.result);
            free(shadow);
            count++;
        }
        /* Inner ones that are held now are no reason to wake the caller. */
        if (count > 0 || inner == 0 || io->watch_ready)
            return count;
        if (timeout_ns >= 0 && (left = deadline - io_now(io)) <= 0)
            return 0;
    }
}

/* ---------------------------------------------------------------------------------------- the rest passes */

static int64_t faulty_now(struct io *io)
{
    return io_now(faulty_of(io)->inner);
}

static int64_t faulty_wall(struct io *io)
{
    struct io *inner = faulty_of(io)->inner;
    return inner->functions->wall(inner);
}

static int faulty_random(struct io *io, void *buffer, size_t length)
{
    struct io *inner = faulty_of(io)->inner;
    return inner->functions->random(inner, buffer, length);
}

static uint64_t faulty_file_size(struct io *io, struct io_file *file)
{
    struct io *inner = faulty_of(io)->inner;
    return inner->functions->file_size(inner, file);
}

static uint32_t faulty_file_align(struct io *io, struct io_file *file)
{
    struct io *inner = faulty_of(io)->inner;
    return inner->functions->file_align(inner, file);
}

static int faulty_list(struct io *io, struct io_entry **entries, size_t *count)
{
    struct io *inner = faulty_of(io)->inner;
    return inner->functions->list(inner, entries, count);
}

static int faulty_lock(struct io *io, struct io_file *file)
{
    struct io *inner = faulty_of(io)->inner;
    return inner->functions->lock(inner, file);
}

static int faulty_claim(struct io *io, const char *name, int64_t *holder_pid)
{
    struct io *inner = faulty_of(io)->inner;
    return inner->functions->claim(inner, name, holder_pid);
}

static void faulty_sleep(struct io *io, int64_t ns)
{
    struct io *inner = faulty_of(io)->inner;
    inner->functions->sleep(inner, ns);
}

static uint64_t faulty_space_free(struct io *io)
{
    struct io *inner = faulty_of(io)->inner;
    return inner->functions->space_free(inner);
}

static void faulty_signal_send(struct io *io, struct io_signal *signal)
{
    io_signal_send(faulty_of(io)->inner, signal);
}

static bool faulty_ready(const struct io *io)
{
    return io_ready(((const struct faulty *)(const void *)io)->inner);
}

static void faulty_signal_cancel(struct io *io, struct io_signal *signal)
{
    io_signal_cancel(faulty_of(io)->inner, signal);
}

static void faulty_prepare_memory(struct io *io, void *memory, size_t bytes)
{
    io_prepare_memory(faulty_of(io)->inner, memory, bytes);
}

static void faulty_destroy(struct io *io)
{
    struct faulty *faulty = faulty_of(io);
    check_bug(io->inflight == 0);
    faulty->inner->functions->destroy(faulty->inner);
    free(faulty);
}

static const struct io_functions faulty_functions = {
    .submit = faulty_submit,
    .kick = faulty_kick,
    .wait = faulty_wait,
    .now = faulty_now,
    .wall = faulty_wall,
    .random = faulty_random,
    .file_size = faulty_file_size,
    .file_align = faulty_file_align,
    .list = faulty_list,
    .lock = faulty_lock,
    .claim = faulty_claim,
    .sleep = faulty_sleep,
    .space_free = faulty_space_free,
    .destroy = faulty_destroy,
    .signal_send = faulty_signal_send,
    .signal_cancel = faulty_signal_cancel,
    .prepare_memory = faulty_prepare_memory,
    .ready = faulty_ready,
};

int io_fault_create(struct io *inner, struct io **out)
{
    struct faulty *faulty = calloc(1, sizeof *faulty);
    if (faulty == NULL)
        return -ENOMEM;
    faulty->io = *inner;
    faulty->io.functions = &faulty_functions;
    faulty->io.inflight = 0;
    faulty->inner = inner;
    *out = &faulty->io;
    return 0;
}

/* ---------------------------------------------------------------------------------------- the test's side */

void io_fault_set(struct io *io, enum io_kind kind, const struct fault *fault)
{
    struct rule *rule = &faulty_of(io)->rules[kind];
    check_bug(fault->nth > 0);
    check_bug(fault->action == FAULT_SHORT ? kind == IO_READ || kind == IO_WRITE : fault->error > 0);
    rule->fault = *fault;
    rule->active = true;
    rule->seen = 0;
}

void io_fault_clear(struct io *io, enum io_kind kind)
{
    faulty_of(io)->rules[kind].active = false;
}

void io_fault_hold(struct io *io, enum io_kind kind, bool hold)
{
    faulty_of(io)->rules[kind].hold = hold;
}

unsigned io_fault_held(const struct io *io, enum io_kind kind)
{
    return faulty_of(io)->rules[kind].held_count;
}

unsigned io_fault_release(struct io *io, enum io_kind kind, unsigned most)
{
    struct faulty *faulty = faulty_of(io);
    struct rule *rule = &faulty->rules[kind];
    unsigned count = 0;
    for (; count < most && rule->held.first != NULL; count++)
        push(&faulty->ready, pop(&rule->held));
    rule->held_count -= count;
    return count;
}

uint64_t io_fault_count(const struct io *io, enum io_kind kind)
{
    return faulty_of(io)->rules[kind].count;
}

uint64_t io_fault_bytes(const struct io *io, enum io_kind kind)
{
    return faulty_of(io)->rules[kind].bytes;
}
