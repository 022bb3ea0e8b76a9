#include "harness.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static struct rig rig;

static void expect_refusal(const struct hello *hello, size_t bytes, int status, const char *words)
{
    struct client client;
    int rc = client_handshake(&rig, &client, hello, bytes);
    cr_assert_eq(rc, status, "%d and \"%s\" instead of %d", rc, client.welcome.text, status);
    cr_assert_not_null(strstr(client.welcome.text, words), "\"%s\" lacks \"%s\"", client.welcome.text, words);
    rig_turn(&rig, 2);
    cr_assert(client_ended(&client));
    client_close(&client);
    cr_assert_eq(server_values(rig.server)->session_connections, 0);
}

Test(handshake, refuses_each_wrong_field)
{
    rig_start(&rig, NULL, 0);
    struct hello hello = hello_good();
    expect_refusal(&hello, 4, -EPROTO, "does not speak");
    expect_refusal(&hello, sizeof hello - 1, -EPROTO, "does not speak");
    struct {
        struct hello hello;
        char more;
    } longer = {.hello = hello_good()};
    expect_refusal(&longer.hello, sizeof longer, -EPROTO, "does not speak");

#define WRONG(change, status, words)                                                                         \
    do {                                                                                                     \
        struct hello wrong = hello_good();                                                                   \
        change;                                                                                              \
        expect_refusal(&wrong, sizeof wrong, status, words);                                                 \
    } while (0)
    WRONG(wrong.magic ^= 1, -EPROTO, "does not speak");
    WRONG(wrong.fingerprint ^= 1, -EPROTO, "fingerprint");
    WRONG(wrong.flags = HELLO_FLAGS + 1, -EPROTO, "does not know");
    WRONG(wrong.flags = HELLO_REQUIRE_URING, -EOPNOTSUPP, "io_uring");
    WRONG(wrong.queue_entries = 0, -EINVAL, "queue 0");
    WRONG(wrong.queue_entries = 17, -EINVAL, "queue 17");
    WRONG(wrong.queue_entries = 8192, -EINVAL, "queue 8192");
    WRONG(wrong.arena_bytes = 0, -EINVAL, "arena 0");
    WRONG(wrong.arena_bytes = UINT64_MAX, -EINVAL, "arena");
    WRONG(wrong.arena_bytes += 1, -EINVAL, "arena");
    WRONG(wrong.window_bytes = 0, -EINVAL, "window 0");
    WRONG(wrong.window_bytes = 100000, -EINVAL, "window 100000");
    WRONG(wrong.window_bytes = UINT64_C(1) << 63, -EINVAL, "window");
    for (size_t i = 0; i < sizeof hello.reserved; i++)
        WRONG(wrong.reserved[i] = 1, -EPROTO, "does not know");
    rig_stop(&rig);
}

Test(handshake, names_both_layout_versions_when_they_differ)
{
    rig_start(&rig, NULL, 0);
    struct hello hello = hello_good();
    hello.version_min = 70;
    hello.version_max = 72;
    expect_refusal(&hello, sizeof hello, -EPROTO, "70 to 72");
    expect_refusal(&hello, sizeof hello, -EPROTO, "the broker 2");
    hello.version_min = 0;
    hello.version_max = 0;
    expect_refusal(&hello, sizeof hello, -EPROTO, "0 to 0");
    rig_stop(&rig);
}

Test(handshake, accepts_a_newer_client_that_still_speaks_this_version)
{
    rig_start(&rig, NULL, 0);
    struct hello hello = hello_good();
    hello.version_max = 9;
    hello.fingerprint = 1234; /* of version 9 */
    struct client client;
    cr_assert_eq(client_handshake(&rig, &client, &hello, sizeof hello), 0);
    cr_assert_eq(client.welcome.version, LAYOUT_VERSION);
    cr_assert_eq(client.welcome.epoch, 7);
    cr_assert_eq(client.welcome.io_backend, IO_BACKEND_PWRITE);
    cr_assert_eq(client.welcome.default_level, LEVEL_DURABLE);
    cr_assert_eq(client.broker->magic, LAYOUT_MAGIC);
    cr_assert_eq(client.broker->fingerprint, layout_fingerprint());
    cr_assert_eq(client.broker->arena_at, client.sizes.arena_at);
    cr_assert_eq(client.broker->window_at, client.sizes.window_at);
    client_close(&client);
    rig_stop(&rig);
}

/* A file that only the broker writes. */
static void expect_read_only(int fd, size_t bytes)
{
    cr_assert_eq(mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
    cr_assert_eq(errno, EPERM, "map for writing");
    void *at = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    cr_assert_neq(at, MAP_FAILED);
    cr_assert_eq(mprotect(at, bytes, PROT_READ | PROT_WRITE), -1);
    cr_assert_eq(errno, EACCES, "mprotect");
    munmap(at, bytes);
    cr_assert_eq(pwrite(fd, "x", 1, 0), -1);
    cr_assert_eq(errno, EPERM, "write");
    cr_assert_eq(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), -1);
    cr_assert_eq(errno, EPERM, "punch");
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int again = open(path, O_RDWR | O_CLOEXEC);
    if (again >= 0) {
        cr_assert_eq(pwrite(again, "x", 1, 0), -1);
        close(again);
    }
    char *const arguments[] = {path, NULL};
    cr_assert_eq(execve(path, arguments, arguments + 1), -1, "not a program");
}

Test(handshake, g20_seals_hold_against_the_client)
{
    rig_start(&rig, NULL, 0);
    struct client client;
    client_connect(&rig, &client);
    const int files[] = {client.files[0], client.files[1], client.watermarks};
    for (size_t i = 0; i < array_count(files); i++) {
        int fd = files[i];
        cr_assert_eq(ftruncate(fd, 0), -1);
        cr_assert_eq(errno, EPERM, "shrink");
        cr_assert_eq(ftruncate(fd, 1 << 30), -1);
        cr_assert_eq(errno, EPERM, "grow");
        cr_assert_eq(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
        cr_assert_eq(errno, EPERM, "seal");
    }
    expect_read_only(client.files[1], client.sizes.broker_file_bytes);
    expect_read_only(client.watermarks, 4096);
    client_close(&client);
    rig_stop(&rig);
}

Test(handshake, every_client_maps_the_same_watermarks_and_is_told_the_limits)
{
    struct watermarks marks;
    struct error err = {0};
    cr_assert_eq(watermarks_create(WATERMARK_SLOTS, &marks, &err), 0, "%s", err.text);
    struct server_options options = {.watermarks = &marks, .max_batch_bytes = 12345678};
    rig_start(&rig, &options, 0);
    struct client clients[2];
    marks.slots[77] = (struct watermark){.written_next = 5, .durable_next = 4};
    for (int i = 0; i < 2; i++) {
        client_connect(&rig, &clients[i]);
        cr_assert_eq(clients[i].welcome.max_batch_bytes, 12345678);
        cr_assert_eq(clients[i].welcome.watermark_slots, WATERMARK_SLOTS);
        struct stat st;
        cr_assert_eq(fstat(clients[i].watermarks, &st), 0);
        cr_assert_eq(st.st_size, WATERMARK_SLOTS * sizeof(struct watermark));
        cr_assert_geq(st.st_blocks * 512, st.st_size, "allocated in full");
        const struct watermark *seen =
            mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, clients[i].watermarks, 0);
        cr_assert_neq(seen, MAP_FAILED);
        cr_assert_eq(seen[77].written_next, 5);
        cr_assert_eq(seen[77].durable_next, 4);
        munmap((void *)(uintptr_t)seen, (size_t)st.st_size);
        client_close(&clients[i]);
    }
    rig_stop(&rig);
    watermarks_destroy(&marks);
}

Test(handshake, a_server_without_watermarks_makes_its_own)
{
    int before = open_descriptors();
    rig_start(&rig, NULL, 0);
    struct client client;
    client_connect(&rig, &client);
    cr_assert_gt(client.welcome.watermark_slots, 0);
    cr_assert_eq(client.welcome.max_batch_bytes, MAX_BATCH_BYTES);
    client_close(&client);
    rig_stop(&rig);
    cr_assert_eq(open_descriptors(), before);
}

Test(handshake, ends_a_connection_that_says_nothing)
{
    struct server_options options = {.handshake_ns = 1};
    rig_start(&rig, &options, 0);
    struct client client = {.socket = client_dial(&rig)};
    for (int i = 0; i < 1000 && server_values(rig.server)->session_handshakes_expired == 0; i++)
        rig_turn(&rig, 1);
    cr_assert_eq(server_values(rig.server)->session_handshakes_expired, 1);
    cr_assert(client_ended(&client));
    client_close(&client);
    rig_stop(&rig);
}

Test(handshake, forgets_a_connection_that_hangs_up_before_hello)
{
    rig_start(&rig, NULL, 0);
    int before = open_descriptors();
    for (int i = 0; i < 10; i++)
        close(client_dial(&rig));
    rig_turn(&rig, 100);
    cr_assert_eq(open_descriptors(), before);
    cr_assert_eq(rig.server->connections, 0);
    rig_stop(&rig);
}

Test(handshake, g24_limits_connections_and_memory_of_a_user)
{
    struct hello hello = hello_good();
    struct layout_sizes sizes = {.queue_entries = hello.queue_entries,
                                 .arena_bytes = hello.arena_bytes,
                                 .window_bytes = hello.window_bytes};
    cr_assert(layout_place(&sizes));
    uint64_t each = sizes.client_file_bytes + sizes.broker_file_bytes;
    struct server_options options = {.max_connections = 4,
                                     .max_connections_of_uid = 3,
                                     .max_shared = 10 * each,
                                     .max_shared_of_uid = 2 * each};
    rig_start(&rig, &options, 0);
    struct client clients[3];
    client_connect(&rig, &clients[0]);
    client_connect(&rig, &clients[1]);
    cr_assert_eq(client_handshake(&rig, &clients[2], &hello, sizeof hello), -EDQUOT);
    cr_assert_not_null(strstr(clients[2].welcome.text, "shared memory"));
    client_close(&clients[2]);
    int silent = client_dial(&rig); /* half-open ones count */
    rig_turn(&rig, 20);
    cr_assert_eq(client_handshake(&rig, &clients[2], &hello, sizeof hello), -EDQUOT);
    cr_assert_not_null(strstr(clients[2].welcome.text, "limit"));
    client_close(&clients[2]);
    close(silent);
    client_close(&clients[0]);
    rig_turn(&rig, 100);
    client_connect(&rig, &clients[0]); /* quota came back */
    cr_assert_eq(server_values(rig.server)->session_refused_quota, 2);
    client_close(&clients[0]);
    client_close(&clients[1]);
    rig_stop(&rig);
}

/* However little of it each user has. */
Test(handshake, g24_limits_the_memory_of_all_users_together)
{
    struct hello hello = hello_good();
    struct layout_sizes sizes = {.queue_entries = hello.queue_entries,
                                 .arena_bytes = hello.arena_bytes,
                                 .window_bytes = hello.window_bytes};
    cr_assert(layout_place(&sizes));
    uint64_t each = sizes.client_file_bytes + sizes.broker_file_bytes;
    struct server_options options = {.max_shared = 3 * each - 1, .max_shared_of_uid = 10 * each};
    rig_start(&rig, &options, 0);
    struct client clients[3];
    client_connect(&rig, &clients[0]);
    client_connect(&rig, &clients[1]);
    cr_assert_eq(client_handshake(&rig, &clients[2], &hello, sizeof hello), -EDQUOT);
    cr_assert_not_null(strstr(clients[2].welcome.text, "used up"), "%s", clients[2].welcome.text);
    for (int i = 0; i < 3; i++)
        client_close(&clients[i]);
    rig_turn(&rig, 40);
    rig_stop(&rig);
}

Test(handshake, g25_survives_running_out_of_descriptors)
{
    rig_start(&rig, NULL, 0);
    struct client first;
    client_connect(&rig, &first);
    struct hello hello = hello_good();
    struct rlimit old;
    getrlimit(RLIMIT_NOFILE, &old);
    int used = open_descriptors();
    /* Room for the client's own socket and `spare` more: accept fails at 0, then the memory, then the
     * eventfds. */
    for (int spare = 0; spare < 6; spare++) {
        int fd = client_dial(&rig);
        cr_assert_eq(send(fd, &hello, sizeof hello, MSG_NOSIGNAL), sizeof hello);
        struct rlimit low = {.rlim_cur = (rlim_t)(used - 3 + 1 + spare), .rlim_max = old.rlim_max};
        cr_assert_eq(setrlimit(RLIMIT_NOFILE, &low), 0);
        rig_turn(&rig, 50);
        cr_assert_eq(setrlimit(RLIMIT_NOFILE, &old), 0);
        struct welcome welcome = {0};
        cr_assert_eq(recv(fd, &welcome, sizeof welcome, MSG_DONTWAIT), sizeof welcome, "%d spare", spare);
        cr_assert(welcome.status == -EDQUOT || (spare >= 5 && welcome.status == 0), "%d: %d", spare,
                  welcome.status);
        close(fd);
        rig_turn(&rig, 50);
        cr_assert_eq(open_descriptors(), used, "%d", spare);
    }
    cr_assert_gt(server_values(rig.server)->session_out_of_descriptors, 0);
    struct client second;
    client_connect(&rig, &second);
    client_close(&second);
    client_close(&first);
    rig_stop(&rig);
}

Test(handshake, g25_descriptors_stay_flat_over_a_thousand_connections, .timeout = 60)
{
    rig_start(&rig, NULL, 0);
    struct client client;
    client_connect(&rig, &client);
    client_close(&client);
    rig_turn(&rig, 20);
    int before = open_descriptors();
    for (int i = 0; i < 1000; i++) {
        client_connect(&rig, &client);
        if (i % 3 == 0) { /* with something on its way */
            uint32_t topic = client_topic(&rig, &client, "t");
            struct descriptor d = client_text(&client, topic, 0, "x");
            client_push(&client, &d);
        }
        client_close(&client);
    }
    rig_turn(&rig, 200);
    cr_assert_eq(open_descriptors(), before);
    cr_assert_eq(server_values(rig.server)->session_connections, 0);
    cr_assert_eq(server_values(rig.server)->session_shared_bytes, 0);
    cr_assert_eq(server_values(rig.server)->session_parked, 0);
    cr_assert_eq(server_values(rig.server)->session_active, 0);
    cr_assert_eq(rig.server->connections, 0);
    cr_assert(TAILQ_EMPTY(&rig.server->accounts));
    cr_assert_eq(fake_topic(&rig.log, "t")->count, 334);
    rig_stop(&rig);
}

Test(handshake, ends_a_client_that_talks_on_the_socket)
{
    rig_start(&rig, NULL, 0);
    struct client client;
    client_connect(&rig, &client);
    cr_assert_eq(send(client.socket, "hello?", 6, MSG_NOSIGNAL), 6);
    rig_turn(&rig, 40);
    cr_assert(client_ended(&client));
    cr_assert_eq(server_values(rig.server)->session_ended_hostile, 1);
    client_close(&client);
    rig_stop(&rig);
}
