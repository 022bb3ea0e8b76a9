#include <criterion/criterion.h>
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../shared/layout.h"
#include "../../shared/message.h"
#include "../../shared/stat_page.h"
#include "folder.h"

static char base[] = "/tmp/walrus-walrusd-XXXXXX";

static void make_base(void)
{
    unsetenv("WALRUS_DATA_DIR");
    unsetenv("WALRUS_SOCKET");
    unsetenv("WALRUS_INSTANCE");
    unsetenv("NOTIFY_SOCKET");
    cr_assert_not_null(mkdtemp(base));
    cr_assert_eq(chdir(base), 0);
}

static void remove_base(void)
{
    cr_assert_eq(folder_remove(base), 0);
}

TestSuite(walrusd, .init = make_base, .fini = remove_base, .timeout = 60);

struct broker {
    pid_t pid;
    int out, err; /* their read ends */
};

/* Arguments separated by blanks. It dies with the test. */
static struct broker start(const char *line)
{
    const char *program = getenv("WALRUSD");
    cr_assert_not_null(program, "WALRUSD names the program");
    int out[2];
    int err[2];
    cr_assert_eq(pipe2(out, O_CLOEXEC), 0);
    cr_assert_eq(pipe2(err, O_CLOEXEC), 0);
    pid_t pid = fork();
    cr_assert_geq(pid, 0);
    if (pid == 0) {
        static char text[1000];
        char *argv[32] = {(char[]){"walrusd"}};
        int argc = 1;
        char *rest;
        snprintf(text, sizeof text, "%s", line);
        for (char *at = strtok_r(text, " ", &rest); at != NULL && argc < 31; at = strtok_r(NULL, " ", &rest))
            argv[argc++] = at;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(out[1], STDOUT_FILENO);
        dup2(err[1], STDERR_FILENO);
        execv(program, argv);
        _exit(127);
    }
    close(out[1]);
    close(err[1]);
    return (struct broker){.pid = pid, .out = out[0], .err = err[0]};
}

/* One line of its output; "" at the end of it. */
static const char *line_from(int fd)
{
    static char line[1000];
    size_t n = 0;
    while (n < sizeof line - 1 && read(fd, line + n, 1) == 1 && line[n] != '\n')
        n++;
    line[n] = '\0';
    return line;
}

static struct broker start_ready(const char *line, const char *socket_path)
{
    struct broker broker = start(line);
    char expected[300];
    snprintf(expected, sizeof expected, "walrusd: ready on %s", socket_path);
    const char *said = line_from(broker.out);
    if (strcmp(said, expected) != 0)
        cr_assert_fail("\"%s\" and \"%s\" instead of \"%s\"", said, line_from(broker.err), expected);
    return broker;
}

static int end(struct broker *broker, int signal_number)
{
    int status;
    if (signal_number != 0)
        cr_assert_eq(kill(broker->pid, signal_number), 0);
    cr_assert_eq(waitpid(broker->pid, &status, 0), broker->pid);
    close(broker->out);
    close(broker->err);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static bool exists(const char *path)
{
    return access(path, F_OK) == 0;
}

Test(walrusd, is_ready_and_ends_clean_on_each_stopping_signal)
{
    static const int signals[] = {SIGTERM, SIGINT, SIGHUP};
    for (size_t i = 0; i < array_count(signals); i++) {
        struct broker broker = start_ready("--data-dir d --socket s.sock", "s.sock");
        struct stat st;
        cr_assert_eq(stat("s.sock", &st), 0);
        cr_assert_eq(st.st_mode & 0777, 0600);
        cr_assert_eq(stat("s.sock.stat", &st), 0);
        cr_assert_eq(st.st_mode & 0777, 0600);
        cr_assert_eq(end(&broker, signals[i]), 0);
        cr_assert_not(exists("s.sock"));
        cr_assert_not(exists("s.sock.stat"));
    }
}

Test(walrusd, says_usage_errors_in_one_line_and_exits_2)
{
    struct broker broker = start("--segment 1");
    char said[1000];
    snprintf(said, sizeof said, "%s", line_from(broker.err));
    cr_assert_not_null(strstr(said, "--segment"));
    cr_assert_str_empty(line_from(broker.err));
    cr_assert_eq(end(&broker, 0), 2);
    broker = start("--version");
    cr_assert_eq(strncmp(line_from(broker.out), "walrusd ", 8), 0);
    cr_assert_eq(end(&broker, 0), 0);
    broker = start("--help");
    cr_assert_not_null(strstr(line_from(broker.out), "walrusd"));
    cr_assert_eq(end(&broker, 0), 0);
}

Test(walrusd, refuses_a_socket_or_a_store_in_use_and_names_the_pid)
{
    struct broker broker = start_ready("--data-dir d --socket s.sock", "s.sock");
    char pid[32];
    snprintf(pid, sizeof pid, "%d", (int)broker.pid);
    struct broker second = start("--data-dir other --socket s.sock");
    cr_assert_not_null(strstr(line_from(second.err), pid));
    cr_assert_eq(end(&second, 0), 1);
    second = start("--data-dir d --socket t.sock");
    const char *said = line_from(second.err);
    cr_assert_not_null(strstr(said, pid), "%s", said);
    cr_assert_eq(end(&second, 0), 1);
    cr_assert_not(exists("t.sock"));
    cr_assert(exists("s.sock"), "the first one is not touched");
    cr_assert_eq(end(&broker, SIGTERM), 0);
}

Test(walrusd, takes_over_what_a_killed_one_left)
{
    struct broker broker = start_ready("--data-dir d --socket s.sock", "s.sock");
    cr_assert_eq(end(&broker, SIGKILL), -SIGKILL);
    cr_assert(exists("s.sock"));
    cr_assert(exists("s.sock.stat"));
    broker = start_ready("--data-dir d --socket s.sock", "s.sock");
    cr_assert_eq(end(&broker, SIGTERM), 0);
    cr_assert_not(exists("s.sock"));
}

Test(walrusd, two_instances_share_a_data_folder)
{
    struct broker one = start_ready("--data-dir d --socket 1.sock --instance one", "1.sock");
    struct broker two = start_ready("--data-dir d --socket 2.sock --instance two", "2.sock");
    cr_assert(exists("d/one/walrus.store"));
    cr_assert(exists("d/two/walrus.store"));
    cr_assert_eq(end(&one, SIGTERM), 0);
    cr_assert_eq(end(&two, SIGTERM), 0);
}

static void expect_datagram(int fd, const char *expected)
{
    char text[100] = "";
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
    cr_assert_eq(poll(&poll_fd, 1, 20000), 1);
    cr_assert_gt(recv(fd, text, sizeof text - 1, 0), 0);
    cr_assert_str_eq(text, expected);
}

Test(walrusd, tells_the_service_manager)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s/notify", base);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    cr_assert_eq(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    setenv("NOTIFY_SOCKET", address.sun_path, 1);
    struct broker broker = start_ready("--data-dir d --socket s.sock", "s.sock");
    expect_datagram(fd, "READY=1");
    cr_assert_eq(kill(broker.pid, SIGTERM), 0);
    expect_datagram(fd, "STOPPING=1");
    cr_assert_eq(end(&broker, 0), 0);
    close(fd);
}

/* A connection that says nothing, one that hung up, one that is greeted: none of them keeps the broker from
 * ending. */
Test(walrusd, ends_with_clients_connected)
{
    struct broker broker = start_ready("--data-dir d --socket s.sock", "s.sock");
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "s.sock"};
    int fds[3];
    for (int i = 0; i < 3; i++) {
        fds[i] = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        cr_assert_eq(connect(fds[i], (struct sockaddr *)&address, sizeof address), 0);
    }
    close(fds[1]);
    struct hello hello = {.magic = MESSAGE_MAGIC, .version_min = 900, .version_max = 900};
    cr_assert_eq(send(fds[2], &hello, sizeof hello, 0), sizeof hello);
    struct welcome welcome;
    cr_assert_eq(recv(fds[2], &welcome, sizeof welcome, 0), sizeof welcome);
    cr_assert_eq(welcome.status, -EPROTO);
    cr_assert_eq(welcome.broker_pid, (uint32_t)broker.pid);
    cr_assert_eq(end(&broker, SIGTERM), 0);
}

/* With the smallest sizes. "" = no name. */
static struct hello hello_for(const char *name)
{
    struct hello hello = {.magic = MESSAGE_MAGIC,
                          .version_min = LAYOUT_VERSION,
                          .version_max = LAYOUT_VERSION,
                          .fingerprint = layout_fingerprint(),
                          .queue_entries = MIN_QUEUE_ENTRIES,
                          .arena_bytes = MIN_ARENA_BYTES,
                          .window_bytes = MIN_WINDOW_BYTES,
                          .name_bytes = (uint32_t)strlen(name)};
    memcpy(hello.name, name, strlen(name));
    return hello;
}

/* A connection; its welcome. */
static int connect_to(const char *path, struct welcome *welcome)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    cr_assert_eq(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    struct hello hello = hello_for("");
    cr_assert_eq(send(fd, &hello, sizeof hello, MSG_NOSIGNAL), sizeof hello);
    cr_assert_eq(recv(fd, welcome, sizeof *welcome, 0), sizeof *welcome);
    return fd;
}

static void expect_refused(const char *arguments, const char *words)
{
    struct broker broker = start_ready(arguments, "s.sock");
    struct welcome welcome;
    int first = connect_to("s.sock", &welcome);
    cr_assert_eq(welcome.status, 0, "%s", welcome.text);
    int second = connect_to("s.sock", &welcome);
    cr_assert_eq(welcome.status, -EDQUOT, "%s", arguments);
    cr_assert_not_null(strstr(welcome.text, words), "%s: \"%s\"", arguments, welcome.text);
    close(first);
    close(second);
    cr_assert_eq(end(&broker, SIGTERM), 0);
}

Test(walrusd, g24_the_limits_of_its_options_hold)
{
    expect_refused("--data-dir d --socket s.sock --max-connections 1", "1 connections");
    expect_refused("--data-dir d --socket s.sock --max-in-flight 16", "12 entries in flight");
}

Test(walrusd, tells_clients_the_largest_batch_and_the_watermarks)
{
    struct broker broker =
        start_ready("--data-dir d --socket s.sock --max-batch 5M --max-topics 1000", "s.sock");
    struct welcome welcome;
    int fd = connect_to("s.sock", &welcome);
    cr_assert_eq(welcome.status, 0, "%s", welcome.text);
    cr_assert_eq(welcome.max_batch_bytes, 5u << 20);
    cr_assert_eq(welcome.watermark_slots, 1000);
    close(fd);
    cr_assert_eq(end(&broker, SIGTERM), 0);
}

#define SANITIZED_PAGES (1L << 30) /* no broker maps 4 TiB; the address sanitizer's shadow does */

/* What the kernel counts of a process; the page counts of its statm, and its descriptors. */
struct usage {
    long mapped, resident, descriptors, mappings;
};

static bool usage_of(pid_t pid, struct usage *usage)
{
    char path[64];
    *usage = (struct usage){0};
    snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
    DIR *folder = opendir(path);
    if (folder == NULL) /* what cannot be dumped is root's alone */
        return false;
    while (readdir(folder) != NULL)
        usage->descriptors++;
    closedir(folder);
    snprintf(path, sizeof path, "/proc/%d/statm", (int)pid);
    char line[200];
    char *rest;
    FILE *file = fopen(path, "r");
    cr_assert_not_null(file);
    cr_assert_not_null(fgets(line, sizeof line, file));
    fclose(file);
    usage->mapped = strtol(line, &rest, 10);
    usage->resident = strtol(rest, NULL, 10);
    cr_assert(usage->mapped > 0 && usage->resident > 0, "%s", line);
    snprintf(path, sizeof path, "/proc/%d/maps", (int)pid);
    file = fopen(path, "r");
    cr_assert_not_null(file);
    for (int c = fgetc(file); c != EOF; c = fgetc(file))
        usage->mappings += c == '\n';
    fclose(file);
    return true;
}

/* One client that connects and is killed, some with a name, some before their welcome, some that have said
 * nothing. */
static void connect_and_die(int cycle)
{
    pid_t pid = fork();
    cr_assert_geq(pid, 0);
    if (pid == 0) {
        struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "s.sock"};
        struct hello hello = hello_for("");
        if (cycle % 2 == 0) {
            hello = hello_for("mortal");
            hello.flags = HELLO_TAKE_OVER;
        }
        struct welcome welcome = {0};
        int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        bool well = connect(fd, (struct sockaddr *)&address, sizeof address) == 0;
        if (cycle % 10 != 9)
            well = well && send(fd, &hello, sizeof hello, MSG_NOSIGNAL) == (ssize_t)sizeof hello;
        if (cycle % 10 < 8)
            well = well && recv(fd, &welcome, sizeof welcome, 0) == (ssize_t)sizeof welcome &&
                   welcome.status == 0;
        raise(well ? SIGKILL : SIGABRT);
    }
    int status;
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "cycle %d went wrong", cycle);
}

/* A connection that is welcomed after all those before it have been noticed. */
static void meet(void)
{
    struct welcome welcome;
    close(connect_to("s.sock", &welcome));
    cr_assert_eq(welcome.status, 0, "%s", welcome.text);
}

Test(walrusd, g25_clients_that_connect_and_are_killed_leave_nothing, .timeout = 600)
{
    const char *wanted = getenv("WALRUS_TEST_CYCLES");
    int cycles = wanted != NULL ? (int)strtol(wanted, NULL, 10) : 300;
    struct broker broker = start_ready("--data-dir d --socket s.sock", "s.sock");
    struct usage before, after;
    if (!usage_of(broker.pid, &before)) {
        end(&broker, SIGTERM);
        cr_skip("SKIPPED: looking at walrusd in /proc takes root");
    }
    for (int i = 0; i < 100; i++) /* the allocator and the log have what they keep */
        connect_and_die(i);
    for (int i = 0; i < 200; i++)
        meet();
    cr_assert(usage_of(broker.pid, &before));
    for (int i = 0; i < cycles; i++)
        connect_and_die(i);
    int patience = 1000;
    do
        meet();
    while (usage_of(broker.pid, &after) && after.descriptors > before.descriptors && --patience > 0);
    printf("%d cycles: descriptors %ld -> %ld, mappings %ld -> %ld, pages mapped %ld -> %ld, resident %ld -> "
           "%ld\n",
           cycles, before.descriptors, after.descriptors, before.mappings, after.mappings, before.mapped,
           after.mapped, before.resident, after.resident);
    cr_assert_leq(after.descriptors, before.descriptors);
    cr_assert_leq(after.mappings, before.mappings + 2);
    cr_assert_leq(after.mapped, before.mapped + 256);
    if (before.mapped < SANITIZED_PAGES) /* the address sanitizer keeps what was freed for a while */
        cr_assert_leq(after.resident, before.resident + 256);
    cr_assert_eq(end(&broker, SIGTERM), 0);
}

Test(walrusd, a_folder_that_cannot_be_made_is_named_and_exits_1)
{
    close(open("file", O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    struct broker broker = start("--data-dir file/d --socket s.sock");
    cr_assert_not_null(strstr(line_from(broker.err), "file"));
    cr_assert_eq(end(&broker, 0), 1);
}

Test(walrusd, warns_where_the_promises_are_not_known)
{
    if (access("/dev/shm", W_OK) != 0)
        cr_skip("SKIPPED: no tmpfs at /dev/shm");
    char folder[64];
    char arguments[128];
    snprintf(folder, sizeof folder, "/dev/shm/walrusd-test-%d", (int)getpid());
    snprintf(arguments, sizeof arguments, "--data-dir %s --socket s.sock", folder);
    struct broker broker = start_ready(arguments, "s.sock");
    cr_assert_eq(kill(broker.pid, SIGTERM), 0);
    bool warned = false;
    for (const char *line = line_from(broker.err); line[0] != '\0'; line = line_from(broker.err))
        warned = warned || (strstr(line, "warning") != NULL && strstr(line, "tmpfs") != NULL);
    cr_assert(warned);
    cr_assert_eq(end(&broker, 0), 0);
    cr_assert_eq(folder_remove(folder), 0);
}
