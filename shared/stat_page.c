/* stat_page.c: writing and reading the counters file.
 *
 * Writer (one)                                    Reader (any number, other processes)
 *   1. takes the copy not written last              1. magic, version, sizes: refuse what it does not know
 *   2. begin = n, fence                             2. per copy: load end (acquire), copy the values, fence,
 * load begin
 *   3. values                                       3. keeps the values if both are equal and not 0
 *   4. end = n (release)                            4. takes the kept copy with the higher number
 *
 * S1  the release-store of `end` pairs with the reader's acquire-load of it: the values of update n are there
 * before n is. S2  the release fence behind the store of `begin` pairs with the acquire fence before its
 * load: a reader that met a value of update n + 2 in this copy also meets begin = n + 2, and drops what it
 * has. Every word is loaded and stored as an atomic of its own, relaxed, since both sides may touch it at
 * once. */
#include "stat_page.h"

#define NAME_LOG(name)     "log_" #name,
#define NAME_SESSION(name) "session_" #name,
#define NAME_LOOP(name)    "loop_" #name,
static const char *const field_names[STAT_FIELD_COUNT] = {
    STAT_LOG_FIELDS(NAME_LOG) STAT_SESSION_FIELDS(NAME_SESSION) STAT_LOOP_FIELDS(NAME_LOOP)};

const char *stat_field_name(unsigned field)
{
    return field < STAT_FIELD_COUNT ? field_names[field] : NULL;
}

static void terminate(char *text, size_t size)
{
    text[size - 1] = '\0';
}

static bool copy_read(const struct stat_copy *copy, struct stat_values *out, uint64_t *number)
{
    uint64_t end = __atomic_load_n(&copy->end, __ATOMIC_ACQUIRE); /* S1 */
    const uint64_t *from = (const uint64_t *)&copy->values;
    uint64_t *to = (uint64_t *)out;
    for (size_t i = 0; i < STAT_FIELD_COUNT; i++)
        to[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_ACQUIRE); /* S2 */
    uint64_t begin = __atomic_load_n(&copy->begin, __ATOMIC_RELAXED);
    *number = end;
    return end != 0 && begin == end;
}

int stat_page_read(const void *mapped, size_t mapped_bytes, struct stat_snapshot *out)
{
    const struct stat_page *page = mapped;
    if (mapped_bytes < sizeof *page ||
        __atomic_load_n(&page->identity.magic, __ATOMIC_ACQUIRE) != STAT_PAGE_MAGIC)
        return -EPROTO;
    struct stat_identity *identity = &out->identity;
    memcpy(identity, &page->identity, sizeof *identity);
    if (identity->version != STAT_PAGE_VERSION || identity->page_bytes != STAT_PAGE_BYTES ||
        identity->field_count != STAT_FIELD_COUNT)
        return -EPROTO;
    terminate(identity->broker_version, sizeof identity->broker_version);
    terminate(identity->io_backend_name, sizeof identity->io_backend_name);
    terminate(identity->store_id, sizeof identity->store_id);
    terminate(identity->boot_id, sizeof identity->boot_id);
    terminate(identity->store_path, sizeof identity->store_path);
    terminate(identity->socket_path, sizeof identity->socket_path);
    out->loop = (struct stat_loop){
        .state = __atomic_load_n(&page->loop.state, __ATOMIC_RELAXED),
        .updated_ns = __atomic_load_n(&page->loop.updated_ns, __ATOMIC_RELAXED),
        .wake_by_ns = __atomic_load_n(&page->loop.wake_by_ns, __ATOMIC_RELAXED),
    };

    out->updates = 0;
    for (unsigned i = 0; i < STAT_COPIES; i++) {
        struct stat_values values;
        uint64_t number;
        if (copy_read(&page->copies[i].copy, &values, &number) && number > out->updates) {
            out->values = values;
            out->updates = number;
        }
    }
    return out->updates == 0 ? -EAGAIN : 0;
}

int64_t stat_page_stalled(const struct stat_snapshot *snapshot, int64_t now_ns)
{
    const struct stat_loop *loop = &snapshot->loop;
    int64_t since = loop->state == STAT_LOOP_ASLEEP ? loop->wake_by_ns : loop->updated_ns;
    if (since < 0 || since >= now_ns) /* the page is not trusted: a time of no sense is no stall */
        return 0;
    return now_ns - since;
}

void stat_page_begin(struct stat_page *page, const struct stat_identity *identity)
{
    uint64_t magic = STAT_PAGE_MAGIC;
    page->identity = *identity;
    page->identity.magic = 0;
    page->identity.version = STAT_PAGE_VERSION;
    page->identity.page_bytes = STAT_PAGE_BYTES;
    page->identity.field_count = STAT_FIELD_COUNT;
    __atomic_store_n(&page->identity.magic, magic, __ATOMIC_RELEASE);
}

void stat_page_write(struct stat_page *page, const struct stat_values *values, uint64_t update)
{
    check_bug(update != 0);
    struct stat_copy *copy = &page->copies[update % STAT_COPIES].copy;
    const uint64_t *from = (const uint64_t *)values;
    uint64_t *to = (uint64_t *)&copy->values;
    __atomic_store_n(&copy->begin, update, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_RELEASE); /* S2 */
    for (size_t i = 0; i < STAT_FIELD_COUNT; i++)
        __atomic_store_n(&to[i], from[i], __ATOMIC_RELAXED);
    __atomic_store_n(&copy->end, update, __ATOMIC_RELEASE); /* S1 */
}

void stat_page_loop(struct stat_page *page, enum stat_loop_state state, int64_t now_ns, int64_t wake_by_ns)
{
    __atomic_store_n(&page->loop.updated_ns, now_ns, __ATOMIC_RELAXED);
    __atomic_store_n(&page->loop.wake_by_ns, wake_by_ns, __ATOMIC_RELAXED);
    __atomic_store_n(&page->loop.state, (uint64_t)state, __ATOMIC_RELAXED);
}
