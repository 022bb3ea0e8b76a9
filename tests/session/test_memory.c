/* The shared memory of connections: large ones are filled and given back beside the loop. */
#include "harness.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define LARGE_ARENA (64u << 20) /* 16 slices: as many looks of the loop, at least */
#define PATIENCE_S  60

static struct rig rig;

static uint64_t shared_bytes(void)
{
    return server_values(rig.server)->session_shared_bytes;
}

static time_t seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec;
}

#define turn_until(condition)                                                                                \
    for (time_t end = seconds() + PATIENCE_S; !(condition); rig_turn(&rig, 1))                               \
    cr_assert_lt(seconds(), end, "in vain: %s", #condition)

static int being_filled(void)
{
    const struct handshake *handshake;
    int count = 0;
    TAILQ_FOREACH(handshake, &rig.server->filling, link)
    count++;
    return count;
}

/* Says hello for a large arena; it is being filled when this returns. */
static int begin_large(void)
{
    struct hello hello = hello_good();
    hello.arena_bytes = LARGE_ARENA;
    int before = being_filled();
    int fd = client_dial(&rig);
    cr_assert_eq(send(fd, &hello, sizeof hello, MSG_NOSIGNAL), (ssize_t)sizeof hello);
    turn_until(being_filled() > before);
    return fd;
}

static int status_of(int fd)
{
    struct welcome welcome;
    ssize_t n = recv(fd, &welcome, sizeof welcome, MSG_DONTWAIT);
    cr_assert_eq(n, (ssize_t)sizeof welcome, "it was answered");
    return welcome.status;
}

static bool readable(int fd)
{
    return poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 0) == 1;
}

Test(memory, g21_others_are_welcomed_and_served_while_a_large_arena_is_filled, .timeout = 120)
{
    struct client small;
    rig_start(&rig, NULL, 0);
    int fd = begin_large();
    cr_assert_gt(shared_bytes(), LARGE_ARENA, "charged before it is filled");
    client_connect(&rig, &small);
    uint32_t topic = client_topic(&rig, &small, "t");
    struct descriptor d = client_text(&small, topic, 64, "beside");
    cr_assert_eq(client_call(&rig, &small, &d).result, 0);
    turn_until(readable(fd));
    cr_assert_eq(status_of(fd), 0);
    close(fd);
    client_close(&small);
    turn_until(shared_bytes() == 0);
    rig_stop(&rig);
}

Test(memory, a_large_arena_is_allocated_in_full_before_the_welcome, .timeout = 120)
{
    struct hello hello = hello_good();
    struct client client;
    hello.arena_bytes = LARGE_ARENA;
    rig_start(&rig, NULL, 0);
    rig_run(&rig);
    cr_assert_eq(client_handshake(&rig, &client, &hello, sizeof hello), 0);
    for (int i = 0; i < 2; i++) {
        struct stat info;
        cr_assert_eq(fstat(client.files[i], &info), 0);
        cr_assert_eq((uint64_t)info.st_size,
                     i == 0 ? client.sizes.client_file_bytes : client.sizes.broker_file_bytes);
        cr_assert_geq(info.st_blocks * 512, info.st_size, "file %d has holes: a late page is a SIGBUS", i);
    }
    rig_halt(&rig);
    client_close(&client);
    turn_until(shared_bytes() == 0);
    rig_stop(&rig);
}

Test(memory, g25_a_client_that_hangs_up_while_its_arena_is_filled_leaves_nothing, .timeout = 120)
{
    struct client first;
    rig_start(&rig, NULL, 0);
    int fd = begin_large(); /* the first large one makes the worker */
    close(fd);
    turn_until(shared_bytes() == 0);
    int before = open_descriptors();
    for (int i = 0; i < 10; i++) {
        fd = begin_large();
        rig_turn(&rig, i * 20);
        close(fd);
        turn_until(shared_bytes() == 0);
    }
    rig_turn(&rig, 40);
    cr_assert_eq(open_descriptors(), before);
    cr_assert(TAILQ_EMPTY(&rig.server->accounts), "nothing is charged to anybody");
    client_connect(&rig, &first);
    client_close(&first);
    rig_turn(&rig, 40);
    rig_stop(&rig);
}

Test(memory, a_quota_counts_what_is_still_being_filled_and_still_being_given_back, .timeout = 120)
{
    struct server_options options = {.max_shared = 4 * (uint64_t)LARGE_ARENA,
                                     .max_shared_of_uid = LARGE_ARENA + LARGE_ARENA / 2};
    struct hello hello = hello_good();
    struct client second;
    hello.arena_bytes = LARGE_ARENA;
    rig_start(&rig, &options, 0);
    int fd = begin_large();
    cr_assert_eq(client_handshake(&rig, &second, &hello, sizeof hello), -EDQUOT);
    client_close(&second);
    turn_until(readable(fd));
    cr_assert_eq(status_of(fd), 0);
    cr_assert_eq(client_handshake(&rig, &second, &hello, sizeof hello), -EDQUOT);
    client_close(&second);
    close(fd);
    turn_until(shared_bytes() == 0);
    fd = begin_large();
    close(fd);
    turn_until(shared_bytes() == 0);
    rig_stop(&rig);
}

Test(memory, whoever_speaks_while_the_arena_is_filled_is_refused, .timeout = 120)
{
    rig_start(&rig, NULL, 0);
    int fd = begin_large();
    cr_assert_eq(send(fd, "again", 5, MSG_NOSIGNAL), 5);
    turn_until(readable(fd));
    cr_assert_eq(status_of(fd), -EPROTO);
    close(fd);
    turn_until(shared_bytes() == 0);
    rig_stop(&rig);
}

Test(memory, a_stop_refuses_those_whose_arena_is_filled_and_waits_for_the_memory, .timeout = 120)
{
    rig_start(&rig, NULL, 0);
    int fd = begin_large();
    int other = begin_large();
    rig_stop(&rig); /* asserts that nothing is left */
    cr_assert_eq(status_of(fd), -ESHUTDOWN);
    cr_assert_eq(status_of(other), -ESHUTDOWN);
    close(fd);
    close(other);
}
