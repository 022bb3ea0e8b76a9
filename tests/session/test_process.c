/* Clients that are real processes: killed, stopped, forked, of another user, handing over descriptors. */
#include "harness.h"

#include <dirent.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef SO_PASSRIGHTS
#define SO_PASSRIGHTS 83
#endif
#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif
#define OTHER_UID   65534
#define PATIENCE_NS INT64_C(30000000000)

static struct rig rig;

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static const struct stat_values *values(void)
{
    return server_values(rig.server);
}

/* Turns until the condition holds. */
#define TURN_UNTIL(condition)                                                                                \
    do {                                                                                                     \
        int64_t until = now_ns() + PATIENCE_NS;                                                              \
        while (!(condition)) {                                                                               \
            rig_turn(&rig, 1);                                                                               \
            cr_assert_lt(now_ns(), until, "waited for %s in vain", #condition);                              \
        }                                                                                                    \
    } while (0)

/* ------------------------------------------------------------------------------------- processes */

struct peer {
    pid_t pid;
    int line; /* to it, and from it: bytes and statuses */
};

static struct peer peer_start(void (*run)(int line))
{
    int ends[2];
    cr_assert_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    pid_t pid = fork();
    cr_assert_geq(pid, 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(ends[0]);
        rig.running = true; /* here nobody turns */
        run(ends[1]);
        _exit(0);
    }
    close(ends[1]);
    return (struct peer){.pid = pid, .line = ends[0]};
}

static void tell(int line, int value)
{
    if (send(line, &value, sizeof value, MSG_NOSIGNAL) != (ssize_t)sizeof value)
        _exit(1);
}

/* In the peer: waits for a word; ends with the test. */
static int hear(int line)
{
    int value;
    if (recv(line, &value, sizeof value, 0) != (ssize_t)sizeof value)
        _exit(1);
    return value;
}

/* In the test: turns until the peer has said something. */
static int peer_says(const struct peer *peer)
{
    int value = 0;
    ssize_t n = -1;
    TURN_UNTIL((n = recv(peer->line, &value, sizeof value, MSG_DONTWAIT)) >= 0);
    cr_assert_eq(n, sizeof value, "the peer has ended");
    return value;
}

static void peer_end(struct peer *peer, int signal_number)
{
    if (signal_number != 0)
        cr_assert_eq(kill(peer->pid, signal_number), 0);
    cr_assert_eq(waitpid(peer->pid, NULL, 0), peer->pid);
    close(peer->line);
}

/* What a connection costs is back. */
static void expect_nothing_left(int descriptors)
{
    TURN_UNTIL(values()->session_connections == 0);
    cr_assert_eq(rig.server->connections, 0);
    cr_assert_eq(rig.server->queue, 0);
    cr_assert_eq(values()->session_shared_bytes, 0);
    cr_assert_eq(values()->session_producers, 0);
    cr_assert(TAILQ_EMPTY(&rig.server->accounts));
    cr_assert_eq(open_descriptors(), descriptors);
}

static struct hello hello_named(const char *name)
{
    struct hello hello = hello_good();
    hello.name_bytes = (uint32_t)strlen(name);
    memcpy(hello.name, name, strlen(name));
    return hello;
}

/* ------------------------------------------------------------------------------------- death */

static void publish_and_wait(int line)
{
    struct client client;
    struct hello hello = hello_named("mortal");
    if (client_handshake(&rig, &client, &hello, sizeof hello) != 0)
        _exit(1);
    memcpy(client.arena + 4096, "t", 1);
    struct descriptor open = {
        .op = OP_OPEN, .flags = DESCRIPTOR_CREATE, .arena_offset = 4096, .payload_bytes = 1, .user_data = 1};
    client_push(&client, &open);
    struct completion completion;
    while (!client_pop(&client, &completion))
        continue;
    struct descriptor d = client_text(&client, completion.entries, 0, "last words");
    d.number = 1;
    client_push(&client, &d);
    tell(line, 1);
    hear(line);
}

/* As `publish_and_wait`, but a child keeps everything. */
static void publish_and_fork(int line)
{
    publish_and_wait(line);
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, 0);
        tell(line, (int)getpid());
        pause();
        _exit(0);
    }
    pause();
}

Test(process, g22_what_a_killed_client_had_published_is_committed_and_all_it_had_comes_back)
{
    rig_start(&rig, NULL, 0);
    int descriptors = open_descriptors();
    struct peer peer = peer_start(publish_and_wait);
    cr_assert_eq(peer_says(&peer), 1);
    peer_end(&peer, SIGKILL);
    expect_nothing_left(descriptors);
    cr_assert_eq(fake_topic(&rig.log, "t")->count, 1);
    rig_stop(&rig);
}

Test(process, g22_a_client_that_was_stopped_and_then_killed_is_over)
{
    rig_start(&rig, NULL, 0);
    int descriptors = open_descriptors();
    struct peer peer = peer_start(publish_and_wait);
    cr_assert_eq(peer_says(&peer), 1);
    cr_assert_eq(kill(peer.pid, SIGSTOP), 0);
    rig_turn(&rig, 1000);
    cr_assert_eq(values()->session_connections, 1, "a stopped one lives");
    peer_end(&peer, SIGKILL);
    expect_nothing_left(descriptors);
    cr_assert_eq(fake_topic(&rig.log, "t")->count, 1);
    rig_stop(&rig);
}

/* Blocks that the client files have which the process holds. */
static long long kept_blocks(pid_t pid, int *files)
{
    char path[300], target[100];
    long long blocks = 0;
    snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
    DIR *folder = opendir(path);
    cr_assert_not_null(folder);
    const struct dirent *entry;
    while ((entry = readdir(folder)) != NULL) {
        struct stat st;
        snprintf(path, sizeof path, "/proc/%d/fd/%s", (int)pid, entry->d_name);
        ssize_t n = readlink(path, target, sizeof target - 1);
        target[n > 0 ? n : 0] = '\0';
        if (strstr(target, "walrus-client") == NULL || stat(path, &st) != 0)
            continue;
        blocks += st.st_blocks;
        (*files)++;
    }
    closedir(folder);
    return blocks;
}

Test(process, g22_a_killed_client_whose_child_keeps_its_descriptors_is_over)
{
    rig_start(&rig, NULL, 0);
    int descriptors = open_descriptors();
    struct peer peer = peer_start(publish_and_fork);
    cr_assert_eq(peer_says(&peer), 1);
    tell(peer.line, 0);
    pid_t child = peer_says(&peer);
    cr_assert_eq(kill(peer.pid, SIGKILL), 0);
    cr_assert_eq(waitpid(peer.pid, NULL, 0), peer.pid);
    TURN_UNTIL(values()->session_connections == 0);
    cr_assert_eq(values()->session_process_deaths, 1, "the socket is still open in the child");
    cr_assert_eq(kill(child, 0), 0);
    int files = 0;
    cr_assert_eq(kept_blocks(child, &files), 0, "the memory is back as well");
    cr_assert_eq(files, 1, "what the child has is a hole");
    struct client client;
    struct hello hello = hello_named("mortal");
    cr_assert_eq(client_handshake(&rig, &client, &hello, sizeof hello), 0, "%s", client.welcome.text);
    client_close(&client);
    TURN_UNTIL(values()->session_connections == 0);
    close(peer.line);
    expect_nothing_left(descriptors);
    cr_assert_eq(fake_topic(&rig.log, "t")->count, 1);
    cr_assert_eq(kill(child, SIGKILL), 0);
    rig_stop(&rig);
}

static void wait_for_a_name_and_fork(int line)
{
    struct hello hello = hello_named("mortal");
    struct client client;
    client_say_hello(&rig, &client, &hello, sizeof hello);
    if (fork() == 0) {
        prctl(PR_SET_PDEATHSIG, 0);
        tell(line, (int)getpid());
    }
    pause();
}

Test(process, g22_one_that_is_killed_while_it_waits_for_a_name_stands_in_nobodys_way)
{
    rig_start(&rig, NULL, 0);
    struct client client;
    struct hello hello = hello_named("mortal");
    cr_assert_eq(client_handshake(&rig, &client, &hello, sizeof hello), 0);
    uint32_t topic = client_topic(&rig, &client, "t");
    rig.log.hold_answers = true;
    struct descriptor d = client_text(&client, topic, 0, "undecided");
    d.number = 1;
    client_push(&client, &d);
    client_close(&client);
    struct peer waiter = peer_start(wait_for_a_name_and_fork);
    pid_t child = peer_says(&waiter);
    TURN_UNTIL(!TAILQ_EMPTY(&rig.server->waiting));
    peer_end(&waiter, SIGKILL);
    TURN_UNTIL(TAILQ_EMPTY(&rig.server->waiting));
    cr_assert(TAILQ_EMPTY(&rig.server->contested));
    cr_assert_eq(kill(child, 0), 0, "the child still has its socket");
    rig.log.hold_answers = false;
    cr_assert_eq(client_handshake(&rig, &client, &hello, sizeof hello), 0, "%s", client.welcome.text);
    client_close(&client);
    kill(child, SIGKILL);
    rig_stop(&rig);
}

/* A killed one, nobody waited for it yet, and the next one is here already: no moment at which it is told
 * that a dead process holds its name. */
Test(process, g22_the_name_of_a_dead_process_is_free_for_the_next_one)
{
    rig_start(&rig, NULL, 0);
    for (int i = 0; i < 20; i++) {
        struct peer peer = peer_start(i % 2 == 0 ? publish_and_wait : publish_and_fork);
        cr_assert_eq(peer_says(&peer), 1);
        pid_t child = 0;
        if (i % 2 != 0) {
            tell(peer.line, 0);
            child = peer_says(&peer);
        }
        cr_assert_eq(kill(peer.pid, SIGKILL), 0);
        siginfo_t info;
        cr_assert_eq(waitid(P_PID, (id_t)peer.pid, &info, WEXITED | WNOWAIT), 0); /* a zombie */
        struct client client;
        struct hello hello = hello_named("mortal");
        cr_assert_eq(client_handshake(&rig, &client, &hello, sizeof hello), 0, "%s", client.welcome.text);
        client_close(&client);
        peer_end(&peer, 0);
        if (child != 0)
            kill(child, SIGKILL);
    }
    rig_stop(&rig);
}

#define ANY UINT32_MAX

/* Makes the kernel answer one system call, with the given third argument, with an error. There is no way
 * back: the test's process ends with the test. */
static void forbid(int call, uint32_t third_argument, int error)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)call, 0, third_argument == ANY ? 1 : 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[2])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, third_argument, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (uint32_t)error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    if (third_argument == ANY)
        code[2] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (uint32_t)error);
    struct sock_fprog program = {.len = array_count(code), .filter = code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
        cr_skip("SKIPPED: no seccomp filter to be had: %s", strerror(errno));
}

static void forbid_peer_pidfd(int error)
{
    forbid(SYS_getsockopt, SO_PEERPIDFD, error);
}

/* With what is forbidden by now. */
static void expect_death_seen(void)
{
    struct peer peer = peer_start(publish_and_fork);
    cr_assert_eq(peer_says(&peer), 1);
    tell(peer.line, 0);
    pid_t child = peer_says(&peer);
    cr_assert_eq(kill(peer.pid, SIGKILL), 0);
    TURN_UNTIL(values()->session_connections == 0);
    cr_assert_eq(values()->session_process_deaths, 1);
    peer_end(&peer, 0);
    kill(child, SIGKILL);
}

Test(process, g22_without_peer_pidfd_the_death_is_seen_by_the_pid)
{
    rig_start(&rig, NULL, 0);
    forbid_peer_pidfd(ENOPROTOOPT); /* as before Linux 6.5 */
    expect_death_seen();
    rig_stop(&rig);
}

Test(process, without_any_pidfd_the_socket_tells)
{
    rig_start(&rig, NULL, 0);
    forbid_peer_pidfd(ENOPROTOOPT);
    forbid(SYS_pidfd_open, ANY, ENOSYS);
    struct client clients[2];
    client_connect(&rig, &clients[0]);
    client_connect(&rig, &clients[1]);
    cr_assert(rig.server->no_pidfd_said);
    client_close(&clients[0]);
    TURN_UNTIL(values()->session_connections == 1);
    client_close(&clients[1]);
    rig_stop(&rig);
}

Test(process, g25_no_descriptor_for_the_pidfd_refuses_the_connection)
{
    rig_start(&rig, NULL, 0);
    int descriptors = open_descriptors();
    forbid_peer_pidfd(EMFILE);
    struct client client;
    struct hello hello = hello_good();
    cr_assert_eq(client_handshake(&rig, &client, &hello, sizeof hello), -EDQUOT);
    client_close(&client);
    cr_assert_eq(open_descriptors(), descriptors);
    cr_assert_eq(values()->session_out_of_descriptors, 1);
    rig_stop(&rig);
}

Test(process, a_client_that_ended_before_its_welcome_gets_no_session)
{
    rig_start(&rig, NULL, 0);
    int descriptors = open_descriptors();
    forbid_peer_pidfd(ESRCH);
    struct client client;
    struct hello hello = hello_named("gone");
    cr_assert_eq(client_handshake(&rig, &client, &hello, sizeof hello), -ECONNRESET);
    client_close(&client);
    expect_nothing_left(descriptors);
    rig_stop(&rig);
}

/* ------------------------------------------------------------------------------------- another user */

static struct hello wanted;

static void connect_as_other(int line)
{
    if (setgroups(0, NULL) != 0 || setgid(OTHER_UID) != 0 || setuid(OTHER_UID) != 0)
        _exit(1);
    struct client clients[4];
    for (int i = 0; i < 4; i++) {
        struct hello hello = wanted;
        if (hello.name_bytes != 0 && i > 0)
            hello.name_bytes = 0, memset(hello.name, 0, sizeof hello.name);
        tell(line, client_handshake(&rig, &clients[i], &hello, sizeof hello));
    }
    hear(line);
}

static struct peer start_other(const struct server_options *options)
{
    if (getuid() != 0)
        cr_skip("SKIPPED: another user takes root");
    rig_start(&rig, options, 0);
    cr_assert_eq(chmod(rig.folder, 0755), 0);
    cr_assert_eq(chmod(rig.socket_path, 0666), 0);
    return peer_start(connect_as_other);
}

/* Three for each user, six in all. The other one takes as many as it gets; we get ours all the same. */
static void expect_own_share(const struct server_options *options)
{
    wanted = hello_good();
    struct peer peer = start_other(options);
    for (int i = 0; i < 3; i++)
        cr_assert_eq(peer_says(&peer), 0);
    cr_assert_eq(peer_says(&peer), -EDQUOT, "its share is used up");
    struct client clients[4];
    for (int i = 0; i < 3; i++)
        client_connect(&rig, &clients[i]);
    struct hello hello = hello_good();
    cr_assert_eq(client_handshake(&rig, &clients[3], &hello, sizeof hello), -EDQUOT);
    for (int i = 0; i < 4; i++)
        client_close(&clients[i]);
    peer_end(&peer, SIGKILL);
    rig_stop(&rig);
}

Test(process, g24_connections_of_one_user_leave_the_others_theirs)
{
    expect_own_share(&(struct server_options){.max_connections = 7, .max_connections_of_uid = 3});
}

Test(process, g24_entries_in_flight_of_one_user_leave_the_others_theirs)
{
    expect_own_share(&(struct server_options){.max_queue = 96, .max_queue_of_uid = 48});
}

Test(process, g24_shared_memory_of_one_user_leaves_the_others_theirs)
{
    struct hello hello = hello_good();
    struct layout_sizes sizes = {.queue_entries = hello.queue_entries,
                                 .arena_bytes = hello.arena_bytes,
                                 .window_bytes = hello.window_bytes};
    cr_assert(layout_place(&sizes));
    uint64_t each = sizes.client_file_bytes + sizes.broker_file_bytes;
    expect_own_share(&(struct server_options){.max_shared = 6 * each, .max_shared_of_uid = 3 * each});
}

Test(process, g23_a_name_belongs_to_the_user_whom_the_kernel_names)
{
    wanted = hello_named("theirs");
    struct peer peer = start_other(NULL);
    for (int i = 0; i < 4; i++)
        cr_assert_eq(peer_says(&peer), 0);
    cr_assert_eq(fake_producer(&rig.log, "theirs")->uid, OTHER_UID);
    struct client client;
    struct hello hello = hello_named("theirs");
    hello.flags = HELLO_TAKE_OVER;
    cr_assert_eq(client_handshake(&rig, &client, &hello, sizeof hello), -EACCES, "not even for root");
    client_close(&client);
    peer_end(&peer, SIGKILL);
    rig_stop(&rig);
}

/* ------------------------------------------------------------------------------------- descriptors */

/* A message with descriptors; 0, or -errno of sendmsg. */
static int send_with(int socket_fd, const void *bytes, size_t length, const int *fds, size_t count)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(253 * sizeof(int))];
    } control = {0};
    union {
        const void *from;
        void *base;
    } data = {.from = bytes};
    struct iovec iov = {.iov_base = data.base, .iov_len = length};
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = CMSG_SPACE(count * sizeof(int))};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(count * sizeof(int));
    memcpy(CMSG_DATA(header), fds, count * sizeof(int));
    return sendmsg(socket_fd, &message, MSG_NOSIGNAL) >= 0 ? 0 : -errno;
}

/* As on a kernel that cannot refuse them (before 6.16). */
static void let_descriptors_through(void)
{
    int yes = 1;
    (void)setsockopt(rig.server->listener.fd, SOL_SOCKET, SO_PASSRIGHTS, &yes, sizeof yes);
    rig.server->rights_refused = false;
    rights_catch_up(rig.server);
}

static void expect_hello_with(const int *fds, size_t count, int before, const char *what)
{
    struct hello hello = hello_good();
    struct client client = {.socket = client_dial(&rig)};
    int rc = send_with(client.socket, &hello, sizeof hello, fds, count);
    if (rc == -EINVAL || rc == -ETOOMANYREFS) { /* an io_uring cannot be sent on newer kernels */
        close(client.socket);
        return;
    }
    cr_assert_eq(rc, 0, "%s: %s", what, strerror(-rc));
    struct welcome welcome = {0};
    TURN_UNTIL(recv(client.socket, &welcome, sizeof welcome, MSG_DONTWAIT) == (ssize_t)sizeof welcome);
    cr_assert_eq(welcome.status, -EPROTO, "%s", what);
    close(client.socket);
    TURN_UNTIL(rig.server->connections == 0);
    cr_assert_eq(open_descriptors(), before, "%s", what);
}

Test(process, g25_a_hello_with_descriptors_is_refused_and_none_is_kept)
{
    rig_start(&rig, NULL, 0);
    let_descriptors_through();
    int many[253];
    int folder = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    char ring_params[120] = {0};
    int uring = (int)syscall(SYS_io_uring_setup, 4, ring_params);
    for (size_t i = 0; i < array_count(many); i++)
        many[i] = folder;
    int before = open_descriptors();
    expect_hello_with(many, array_count(many), before, "253 descriptors");
    expect_hello_with(&folder, 1, before, "a folder");
    if (fuse >= 0)
        expect_hello_with(&fuse, 1, before, "/dev/fuse");
    if (uring >= 0)
        expect_hello_with(&uring, 1, before, "an io_uring");
    struct client client;
    client_connect(&rig, &client);
    (void)send_with(client.socket, "x", 1, many, array_count(many)); /* and after the handshake */
    TURN_UNTIL(values()->session_ended_hostile == 1);
    client_close(&client);
    TURN_UNTIL(values()->session_connections == 0);
    cr_assert_eq(open_descriptors(), before);
    rig_stop(&rig);
}

/* A TCP socket with data that nobody reads and a linger time of ten minutes: whoever closes it last waits. */
static int lingering_socket(int *other_end)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listening = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (listening < 0 || fd < 0 || bind(listening, (struct sockaddr *)&address, sizeof address) != 0 ||
        listen(listening, 1) != 0 || getsockname(listening, (struct sockaddr *)&address, &length) != 0)
        cr_skip("SKIPPED: no TCP on the loopback device: %s", strerror(errno));
    (void)connect(fd, (struct sockaddr *)&address, sizeof address);
    *other_end = accept4(listening, NULL, NULL, SOCK_CLOEXEC);
    cr_assert_geq(*other_end, 0);
    close(listening);
    static const char zeros[65536];
    while (send(fd, zeros, sizeof zeros, MSG_NOSIGNAL) > 0)
        continue;
    struct linger linger = {.l_onoff = 1, .l_linger = 600};
    cr_assert_eq(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger), 0);
    cr_assert_eq(fcntl(fd, F_SETFL, 0), 0);
    return fd;
}

enum moment { WITH_THE_HELLO, BEHIND_THE_HELLO, AFTER_THE_HANDSHAKE, AND_HANGS_UP, MOMENT_COUNT };

/* The test's time limit is far below the linger time. */
static void send_lingering(enum moment moment)
{
    int other_end;
    int fd = lingering_socket(&other_end);
    struct hello hello = hello_good();
    struct client client = {.socket = client_dial(&rig)};
    if (moment == AFTER_THE_HANDSHAKE) {
        close(client.socket);
        client_connect(&rig, &client);
    } else if (moment == BEHIND_THE_HELLO) {
        cr_assert_eq(send(client.socket, &hello, sizeof hello, MSG_NOSIGNAL), sizeof hello);
    }
    int rc = send_with(client.socket, &hello, sizeof hello, &fd, 1);
    cr_assert_eq(rc, rig.server->rights_refused ? -EPERM : 0);
    if (rc != 0) /* or else we would wait */
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &(struct linger){0}, sizeof(struct linger));
    close(fd); /* the message has the last reference */
    if (moment == AND_HANGS_UP)
        close(client.socket);
    rig_turn(&rig, 200);
    if (moment != AND_HANGS_UP)
        client_close(&client);
    rig_turn(&rig, 200);
    cr_assert_eq(rig.server->connections, 0);
    close(other_end);
}

Test(process, g21_a_descriptor_whose_close_waits_does_not_stall_the_loop, .timeout = 60)
{
    rig_start(&rig, NULL, 0);
    if (!rig.server->rights_refused)
        cr_skip(
            "SKIPPED: this kernel cannot refuse descriptors (before 6.16); the next test has the other way");
    for (int moment = 0; moment < MOMENT_COUNT; moment++)
        send_lingering((enum moment)moment);
    rig_stop(&rig);
}

Test(process, g21_nor_does_it_on_a_kernel_that_lets_it_through, .timeout = 60)
{
    rig_start(&rig, NULL, 0);
    let_descriptors_through();
    for (int moment = 0; moment < MOMENT_COUNT; moment++)
        send_lingering((enum moment)moment);
    rig_stop(&rig);
}

/* ------------------------------------------------------------------------------------- out of memory */

Test(process, g24_out_of_address_space_refuses_the_connection_and_heals)
{
#if defined(__SANITIZE_ADDRESS__)
    cr_skip("SKIPPED: the address sanitizer takes all address space");
#endif
    rig_start(&rig, NULL, 0);
    struct client first, second;
    client_connect(&rig, &first);
    int before = open_descriptors();
    struct rlimit old;
    getrlimit(RLIMIT_AS, &old);
    struct rlimit low = {.rlim_cur = 0, .rlim_max = old.rlim_max};
    FILE *statm = fopen("/proc/self/statm", "r");
    char line[200];
    cr_assert_not_null(statm);
    cr_assert_not_null(fgets(line, sizeof line, statm));
    fclose(statm);
    low.rlim_cur = (rlim_t)strtoul(line, NULL, 10) * 4096 + (8u << 20);
    struct hello hello = hello_good();
    hello.arena_bytes = 64u << 20;
    cr_assert_eq(setrlimit(RLIMIT_AS, &low), 0);
    client_say_hello(&rig, &second, &hello, sizeof hello);
    struct welcome welcome = {0};
    TURN_UNTIL(recv(second.socket, &welcome, sizeof welcome, MSG_DONTWAIT) == (ssize_t)sizeof welcome);
    cr_assert_eq(setrlimit(RLIMIT_AS, &old), 0);
    cr_assert_eq(welcome.status, -EDQUOT, "%s", welcome.text);
    cr_assert_not_null(strstr(welcome.text, "memory"));
    client_close(&second);
    TURN_UNTIL(values()->session_connections == 1);
    cr_assert_eq(open_descriptors(), before);
    cr_assert_eq(client_handshake(&rig, &second, &hello, sizeof hello), 0, "%s", second.welcome.text);
    client_close(&second);
    client_close(&first);
    rig_stop(&rig);
}
