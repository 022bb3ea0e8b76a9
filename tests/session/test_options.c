#include <criterion/criterion.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "../../broker/program/paths.h"
#include "../../broker/session/server.h"
#include "../../shared/message.h"
#include "folder.h"

static struct options options;
static struct error err;

static void no_environment(void)
{
    unsetenv("WALRUS_DATA_DIR");
    unsetenv("WALRUS_SOCKET");
    unsetenv("WALRUS_INSTANCE");
}

/* Arguments separated by blanks. */
static int parse(const char *line)
{
    static char text[8192];
    char *argv[32] = {(char[]){"walrusd"}};
    int argc = 1;
    char *rest;
    snprintf(text, sizeof text, "%s", line);
    for (char *at = strtok_r(text, " ", &rest); at != NULL && argc < 31; at = strtok_r(NULL, " ", &rest))
        argv[argc++] = at;
    memset(&err, 0, sizeof err);
    return options_parse(argc, argv, &options, &err);
}

TestSuite(options, .init = no_environment);

Test(options, nothing_said_is_the_defaults)
{
    cr_assert_eq(parse(""), 0, "%s", err.text);
    cr_assert_str_empty(options.data_folder);
    cr_assert_str_empty(options.socket);
    cr_assert_str_empty(options.instance);
    cr_assert_eq(options.socket_mode, 0600);
    cr_assert_eq(options.level, LEVEL_DURABLE);
    cr_assert_eq(options.interval_ns, 0);
    cr_assert_eq(options.backend, 0);
    cr_assert_eq(options.spin_ns, SPIN_ADAPTIVE);
    cr_assert_eq(options.commit_align, 0);
    cr_assert_eq(options.segment_bytes, 0);
    cr_assert_eq(options.memory_bytes, 0);
    cr_assert_eq(options.max_connections, 0);
    cr_assert_eq(options.max_in_flight, 0);
    cr_assert_eq(options.max_shared, 0);
    cr_assert_eq(options.max_topics, 0);
    cr_assert_eq(options.max_producers, 0);
    cr_assert_eq(options.max_batch_bytes, 0);
    cr_assert_eq(options.idle_stream_ns, 0);
    cr_assert_not(options.finished);
}

Test(options, everything_can_be_said_on_the_command_line)
{
    cr_assert_eq(
        parse(
            "--data-dir /d --socket /s --socket-mode 0660 --instance i --durability interval:250 --io pwrite "
            "--spin-us 30 --commit-align 8K --segment 128M --memory=1G"),
        0, "%s", err.text);
    cr_assert_str_eq(options.data_folder, "/d");
    cr_assert_str_eq(options.socket, "/s");
    cr_assert_str_eq(options.instance, "i");
    cr_assert_eq(options.socket_mode, 0660);
    cr_assert_eq(options.level, LEVEL_WRITTEN);
    cr_assert_eq(options.interval_ns, 250000000);
    cr_assert_eq(options.backend, IO_BACKEND_PWRITE);
    cr_assert_eq(options.spin_ns, 30000);
    cr_assert_eq(options.commit_align, 8192);
    cr_assert_eq(options.segment_bytes, 128u << 20);
    cr_assert_eq(options.memory_bytes, 1u << 30);
    cr_assert_eq(parse("--max-connections 65536 --max-in-flight 16 --max-shared 1M --max-topics 1048576 "
                       "--max-producers 1 --max-batch 1024G --idle-stream 86400000"),
                 0, "%s", err.text);
    cr_assert_eq(options.max_connections, 65536);
    cr_assert_eq(options.max_in_flight, 16);
    cr_assert_eq(options.max_shared, 1u << 20);
    cr_assert_eq(options.max_topics, 1u << 20);
    cr_assert_eq(options.max_producers, 1);
    cr_assert_eq(options.max_batch_bytes, UINT64_C(1) << 40);
    cr_assert_eq(options.idle_stream_ns, INT64_C(86400000000000));
    cr_assert_eq(parse("--durability none --io mmap --spin-us 0"), 0);
    cr_assert_eq(options.level, LEVEL_ACCEPTED);
    cr_assert_eq(options.backend, IO_BACKEND_MMAP);
    cr_assert_eq(options.spin_ns, 0);
}

Test(options, what_is_out_of_range_is_refused_and_named)
{
    static const char *const wrong[][2] = {
        {"--socket-mode 888", "--socket-mode"},
        {"--socket-mode 1000", "--socket-mode"},
        {"--socket-mode -1", "--socket-mode"},
        {"--durability fast", "--durability"},
        {"--durability interval:", "--durability"},
        {"--durability interval:0", "--durability"},
        {"--durability interval:-5", "--durability"},
        {"--durability interval:5s", "--durability"},
        {"--durability interval:3600001", "--durability"},
        {"--io aio", "--io"},
        {"--spin-us -1", "--spin-us"},
        {"--spin-us 1000001", "--spin-us"},
        {"--spin-us x", "--spin-us"},
        {"--commit-align 256", "--commit-align"},
        {"--commit-align 128K", "--commit-align"},
        {"--commit-align 12288", "--commit-align"},
        {"--segment 4M", "--segment"},
        {"--segment 1073741825", "--segment"},
        {"--segment 99999999999G", "--segment"},
        {"--memory 23M", "--memory"},
        {"--memory 48MB", "--memory"},
        {"--memory 0x100", "--memory"},
        {"--max-batch 1048575", "--max-batch"},
        {"--max-batch 1025G", "--max-batch"},
        {"--idle-stream 0", "--idle-stream"},
        {"--idle-stream 5s", "--idle-stream"},
        {"--idle-stream 86400001", "--idle-stream"},
        {"--max-connections 0", "--max-connections"},
        {"--max-connections 65537", "--max-connections"},
        {"--max-connections -1", "--max-connections"},
        {"--max-in-flight 15", "--max-in-flight"},
        {"--max-in-flight 16777217", "--max-in-flight"},
        {"--max-shared 1023K", "--max-shared"},
        {"--max-shared 1025G", "--max-shared"},
        {"--max-topics 0", "--max-topics"},
        {"--max-topics 1048577", "--max-topics"},
        {"--max-producers 0", "--max-producers"},
        {"--max-producers many", "--max-producers"},
        {"--instance ../up", "--instance"},
        {"--instance .hidden", "--instance"},
        {"--nothing", "--nothing"},
        {"--segment", "--segment"},
        {"word", "word"},
    };
    for (size_t i = 0; i < array_count(wrong); i++) {
        cr_assert_eq(parse(wrong[i][0]), -EINVAL, "%s", wrong[i][0]);
        cr_assert_not_null(strstr(err.text, wrong[i][1]), "\"%s\" does not name %s", err.text, wrong[i][1]);
        cr_assert_null(strchr(err.text, '\n'), "one line");
    }
}

Test(options, a_socket_path_too_long_for_a_socket_is_refused_with_its_length)
{
    char line[300] = "--socket /";
    memset(line + 10, 'x', 107);
    line[117] = '\0';
    cr_assert_eq(parse(line), -EINVAL);
    cr_assert_not_null(strstr(err.text, "108"));
    line[116] = '\0';
    cr_assert_eq(parse(line), 0, "107 fit");
}

Test(options, sizes_take_suffixes_and_nothing_else)
{
    static const struct {
        const char *text;
        bool good;
        uint64_t value;
    } cases[] = {
        {"0", true, 0},
        {"4096", true, 4096},
        {"64K", true, 65536},
        {"64k", true, 65536},
        {"48M", true, 48 << 20},
        {"1G", true, 1 << 30},
        {"", false, 0},
        {"K", false, 0},
        {"-1", false, 0},
        {"1KB", false, 0},
        {" 1", false, 0},
        {"18446744073709551615", true, UINT64_MAX},
        {"1.5G", false, 0},
        {"17179869184G", false, 0},
        {"18446744073709551616", false, 0},
        {"+1", false, 0},
    };
    for (size_t i = 0; i < array_count(cases); i++) {
        uint64_t value = 0;
        cr_assert_eq(options_size(cases[i].text, &value), cases[i].good, "%s", cases[i].text);
        if (cases[i].good)
            cr_assert_eq(value, cases[i].value);
    }
}

static void config(const char *text)
{
    FILE *file = fopen("/tmp/walrus-options-test.conf", "w");
    cr_assert_not_null(file);
    fputs(text, file);
    fclose(file);
}

Test(options, the_command_line_beats_the_environment_beats_the_file)
{
    config("# comment\n[walrusd]\ndata-dir = /from-file\nsocket = /from-file.sock\ninstance = file\nmemory = "
           "64M\n"
           "[other]\nwhatever = 1\n");
    setenv("WALRUS_SOCKET", "/from-environment.sock", 1);
    setenv("WALRUS_INSTANCE", "environment", 1);
    cr_assert_eq(parse("--instance line --config /tmp/walrus-options-test.conf"), 0, "%s", err.text);
    cr_assert_str_eq(options.data_folder, "/from-file");
    cr_assert_str_eq(options.socket, "/from-environment.sock");
    cr_assert_str_eq(options.instance, "line");
    cr_assert_eq(options.memory_bytes, 64u << 20);
    unlink("/tmp/walrus-options-test.conf");
}

Test(options, a_mistake_in_the_file_is_named_with_its_place)
{
    config("memory = 64M\nmemroy = 1G\n");
    cr_assert_eq(parse("--config /tmp/walrus-options-test.conf"), -EINVAL);
    cr_assert_not_null(strstr(err.text, "memroy"));
    cr_assert_not_null(strstr(err.text, "line 2"), "%s", err.text);
    config("memory = lots\n");
    cr_assert_eq(parse("--config /tmp/walrus-options-test.conf"), -EINVAL);
    cr_assert_not_null(strstr(err.text, "walrus-options-test.conf: memory"), "%s", err.text);
    config("what is this\n");
    cr_assert_eq(parse("--config /tmp/walrus-options-test.conf"), -EINVAL);
    cr_assert_not_null(strstr(err.text, "line 1"), "%s", err.text);
    unlink("/tmp/walrus-options-test.conf");
    cr_assert_eq(parse("--config /tmp/walrus-options-test.conf"), -ENOENT);
    setenv("WALRUS_INSTANCE", "a/b", 1);
    cr_assert_eq(parse(""), -EINVAL);
    cr_assert_not_null(strstr(err.text, "WALRUS_INSTANCE"));
}

/* ------------------------------------------------------------------------------------------------ paths and
 * socket */

static char base[] = "/tmp/walrus-places-XXXXXX";
static struct paths paths;

static void make_base(void)
{
    no_environment();
    cr_assert_not_null(mkdtemp(base));
    cr_assert_eq(chdir(base), 0);
}

static void remove_base(void)
{
    cr_assert_eq(folder_remove(base), 0);
}

TestSuite(places, .init = make_base, .fini = remove_base);

static int resolve(const char *line)
{
    cr_assert_eq(parse(line), 0, "%s", err.text);
    return paths_resolve(&options, &paths, &err);
}

static uint32_t mode_of(const char *path)
{
    struct stat st;
    cr_assert_eq(stat(path, &st), 0, "%s", path);
    return st.st_mode & 0777;
}

Test(places, folders_are_made_private_and_the_instance_is_a_subfolder_of_the_data)
{
    cr_assert_eq(resolve("--data-dir a/b --socket c/d/s.sock --instance one"), 0, "%s", err.text);
    char expected[200];
    snprintf(expected, sizeof expected, "%s/a/b/one", base);
    cr_assert_str_eq(paths.data_folder, expected, "absolute");
    cr_assert_str_eq(paths.socket, "c/d/s.sock", "a socket by hand is used as it is");
    cr_assert_str_eq(paths.stat, "c/d/s.sock.stat");
    cr_assert_eq(mode_of("a"), 0700);
    cr_assert_eq(mode_of("a/b/one"), 0700);
    cr_assert_eq(mode_of("c/d"), 0700);
    cr_assert_eq(resolve("--data-dir a/b --socket e/s.sock --socket-mode 0666"), 0, "%s", err.text);
    cr_assert_eq(mode_of("e"), 0755, "a socket for others is in a folder that others can enter");
}

Test(places, a_file_in_the_way_is_named)
{
    close(open("file", O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    cr_assert_eq(resolve("--data-dir file --socket s.sock"), -ENOTDIR);
    cr_assert_not_null(strstr(err.text, "file"));
    cr_assert_eq(resolve("--data-dir file/below --socket s.sock"), -ENOTDIR);
    cr_assert_eq(resolve("--data-dir d --socket file/s.sock"), -ENOTDIR);
}

Test(places, a_stale_socket_is_taken_over_and_one_in_use_is_not)
{
    struct listener first;
    struct listener second;
    cr_assert_eq(socket_probe("s.sock", &err), 0);
    cr_assert_eq(socket_listen("s.sock", 0640, &first, &err), 0, "%s", err.text);
    cr_assert_eq(mode_of("s.sock"), 0640);
    cr_assert_eq(socket_probe("s.sock", &err), -EADDRINUSE);
    char pid[32];
    snprintf(pid, sizeof pid, "pid %d", (int)getpid());
    cr_assert_not_null(strstr(err.text, pid), "%s", err.text);
    cr_assert_eq(socket_listen("s.sock", 0600, &second, &err), -EADDRINUSE);
    close(first.fd); /* as if it had been killed */
    cr_assert_eq(socket_probe("s.sock", &err), 0);
    cr_assert_eq(socket_listen("s.sock", 0600, &second, &err), 0, "%s", err.text);
    cr_assert_eq(mode_of("s.sock"), 0600);
    socket_remove("s.sock", &first);
    cr_assert_eq(access("s.sock", F_OK), 0, "not the first one's any more");
    socket_remove("s.sock", &second);
    cr_assert_neq(access("s.sock", F_OK), 0);
    close(second.fd);
}

Test(places, what_is_not_a_socket_is_left_alone)
{
    struct listener listener;
    close(open("s.sock", O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    cr_assert_eq(socket_listen("s.sock", 0600, &listener, &err), -EEXIST);
    cr_assert_eq(access("s.sock", F_OK), 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "stream.sock"};
    int other = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_assert_eq(bind(other, (struct sockaddr *)&address, sizeof address), 0);
    cr_assert_eq(listen(other, 1), 0);
    cr_assert_eq(socket_listen("stream.sock", 0600, &listener, &err), -EADDRINUSE);
    close(other);
    char path[300];
    memset(path, 'x', sizeof path - 1);
    path[sizeof path - 1] = '\0';
    cr_assert_eq(socket_listen(path, 0600, &listener, &err), -ENAMETOOLONG);
    cr_assert_eq(socket_listen("nowhere/s.sock", 0600, &listener, &err), -ENOENT);
}

Test(places, the_file_system_is_named)
{
    char name[32];
    bool known = true;
    file_system_of("/proc", name, &known);
    cr_assert_not(known);
    file_system_of("/nowhere", name, &known);
    cr_assert_not(known);
    cr_assert_str_eq(name, "unknown");
}
