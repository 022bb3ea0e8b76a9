/* The handshake: every refusal, and that nothing leaks. */
#include "fake.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static int open_fds(void)
{
    DIR *folder = opendir("/proc/self/fd");
    int count = 0;
    while (readdir(folder) != NULL)
        count++;
    closedir(folder);
    return count;
}

/* Connects to a fake that does `how`, as a producer or not; nothing may be left open. */
static void expect_refusal_of(const char *producer, enum fake_handshake how, int code,
                              const char *part_of_words)
{
    struct fake fake = {
        .handshake = how, .refuse_status = -EDQUOT, .refuse_text = "too many connections of uid 7"};
    fake_start(&fake);
    char words[512] = "";
    struct walrus_connect_options options = {.size = sizeof options,
                                             .socket_path = fake.path,
                                             .producer = producer,
                                             .timeout_ns = how == HANDSHAKE_SILENT ? 20000000 : -1,
                                             .error = words,
                                             .error_size = sizeof words};
    walrus *handle = (walrus *)&fake;
    cr_assert_eq(walrus_connect(&handle, &options), code, "%s", words);
    cr_assert_null(handle);
    cr_assert_not_null(strstr(words, part_of_words), "words: %s", words);
    cr_assert_not_null(strstr(words, fake.path), "words: %s", words);
    fake_stop(&fake);
}

static void expect_refusal(enum fake_handshake how, int code, const char *part_of_words)
{
    expect_refusal_of(NULL, how, code, part_of_words);
}

Test(connect, says_what_the_broker_agreed_to)
{
    struct fake fake = {.handshake = HANDSHAKE_GOOD};
    fake_start(&fake);
    walrus *handle = CONNECT(&fake, .queue_entries = 16, .arena_bytes = 100000, .window_bytes = 1 << 17);
    struct walrus_info info = {.size = sizeof info};
    cr_assert_eq(walrus_get_info(handle, &info), 0);
    cr_assert_eq(info.queue_entries, 16);
    cr_assert_eq(info.arena_bytes, 102400); /* whole pages */
    cr_assert_eq(info.window_bytes, 1 << 17);
    cr_assert_eq(info.epoch, 7);
    cr_assert_eq(info.broker_pid, (uint32_t)getpid());
    cr_assert_eq(info.layout_version, LAYOUT_VERSION);
    cr_assert_eq(info.io_backend, IO_BACKEND_PWRITE);
    cr_assert_eq(info.default_level, WALRUS_LEVEL_DURABLE);
    struct walrus_info none = {.size = 0};
    cr_assert_eq(walrus_get_info(handle, &none), -EINVAL);
    cr_assert_eq(walrus_get_info(NULL, &info), -EINVAL);
    cr_assert_str_eq(walrus_version(), "0.1.0");
    walrus_close(handle);
    walrus_close(NULL);
    fake_stop(&fake);
}

Test(connect, asks_with_the_defaults)
{
    struct fake fake = {.handshake = HANDSHAKE_GOOD};
    fake_start(&fake);
    walrus *handle = CONNECT(&fake, .flags = WALRUS_REQUIRE_IO_URING);
    cr_assert_eq(fake.hello.queue_entries, DEFAULT_QUEUE_ENTRIES);
    cr_assert_eq(fake.hello.arena_bytes, DEFAULT_ARENA_BYTES);
    cr_assert_eq(fake.hello.window_bytes, DEFAULT_WINDOW_BYTES);
    cr_assert_eq(fake.hello.flags, HELLO_REQUIRE_URING);
    walrus_close(handle);
    fake_stop(&fake);
}

Test(connect, refuses_options_out_of_range)
{
    walrus *handle;
    char words[200];
    struct walrus_connect_options good = {
        .size = sizeof good, .socket_path = "/nowhere/socket", .error = words, .error_size = sizeof words};
    struct walrus_connect_options bad[] = {good, good, good, good, good, good, good, good};
    bad[0].queue_entries = 24;
    bad[1].queue_entries = 4;
    bad[2].queue_entries = 8192;
    bad[3].arena_bytes = 1000;
    bad[4].arena_bytes = (UINT64_C(1) << 30) + 1;
    bad[5].window_bytes = 100000;
    bad[6].flags = 1u << 9;
    bad[7].size = 3;
    for (size_t i = 0; i < array_count(bad); i++) {
        words[0] = '\0';
        cr_assert_eq(walrus_connect(&handle, &bad[i]), -EINVAL, "option set %zu", i);
        cr_assert_null(handle);
        if (i < 7)
            cr_assert_neq(words[0], '\0');
    }
    cr_assert_eq(walrus_connect(NULL, &good), -EINVAL);
    good.instance = "../up";
    good.socket_path = NULL;
    unsetenv("WALRUS_SOCKET");
    cr_assert_eq(walrus_connect(&handle, &good), -EINVAL);
    /* A program compiled against a later header may give more, as long as it is zero. */
    struct {
        struct walrus_connect_options known;
        uint64_t later;
    } longer = {.known = {.size = sizeof longer, .socket_path = "/nowhere/socket"}};
    cr_assert_eq(walrus_connect(&handle, &longer.known), -ENOTCONN);
    longer.later = 1;
    cr_assert_eq(walrus_connect(&handle, &longer.known), -EINVAL);
}

Test(connect, tells_a_missing_a_stale_and_a_long_path_apart)
{
    char folder[] = "/tmp/walrus-client-XXXXXX", path[64], words[300] = "";
    cr_assert_not_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/s", folder);
    struct walrus_connect_options options = {
        .size = sizeof options, .socket_path = path, .error = words, .error_size = sizeof words};
    walrus *handle;
    int before = open_fds();
    cr_assert_eq(walrus_connect(&handle, &options), -ENOTCONN);
    cr_assert_not_null(strstr(words, "start walrusd"), "%s", words);

    int stale = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    cr_assert_eq(bind(stale, (struct sockaddr *)&address, sizeof address), 0);
    close(stale);
    cr_assert_eq(walrus_connect(&handle, &options), -ECONNREFUSED);
    cr_assert_not_null(strstr(words, path), "%s", words);
    unlink(path);

    int other = socket(AF_UNIX, SOCK_STREAM, 0); /* a socket of another kind */
    cr_assert_eq(bind(other, (struct sockaddr *)&address, sizeof address), 0);
    cr_assert_eq(listen(other, 1), 0);
    cr_assert_eq(walrus_connect(&handle, &options), -EPROTO);
    close(other);
    unlink(path);
    rmdir(folder);

    char longest[200];
    memset(longest, 'x', sizeof longest);
    longest[0] = '/';
    longest[sizeof longest - 1] = '\0';
    options.socket_path = longest;
    cr_assert_eq(walrus_connect(&handle, &options), -ENAMETOOLONG);
    cr_assert_not_null(strstr(words, "shorter"), "%s", words);
    cr_assert_eq(open_fds(), before);
}

Test(connect, says_that_the_user_may_not)
{
    if (geteuid() == 0 && (setegid(65534) != 0 || seteuid(65534) != 0))
        cr_skip("SKIPPED: cannot become another user");
    struct fake fake = {.handshake = HANDSHAKE_GOOD};
    fake_start(&fake);
    cr_assert_eq(chmod(fake.path, 0), 0);
    walrus *handle;
    struct walrus_connect_options options = {.size = sizeof options, .socket_path = fake.path};
    cr_assert_eq(walrus_connect(&handle, &options), -EACCES);
    fake_stop(&fake);
}

Test(connect, finds_the_socket_by_the_environment)
{
    struct fake fake = {.handshake = HANDSHAKE_GOOD};
    fake_start(&fake);
    setenv("WALRUS_SOCKET", fake.path, 1);
    walrus *handle;
    cr_assert_eq(walrus_connect(&handle, NULL), 0);
    walrus_close(handle);
    fake_stop(&fake);
    /* An instance is a folder below the default. */
    unsetenv("WALRUS_SOCKET");
    setenv("WALRUS_INSTANCE", "blue", 1);
    setenv("XDG_RUNTIME_DIR", "/tmp/walrus-no-such-folder", 1);
    char words[300] = "";
    struct walrus_connect_options options = {
        .size = sizeof options, .error = words, .error_size = sizeof words};
    cr_assert_eq(walrus_connect(&handle, &options), -ENOTCONN);
    cr_assert_not_null(
        strstr(words, geteuid() == 0 ? "/run/walrus/blue/walrus.sock" : "/walrus/blue/walrus.sock"), "%s",
        words);
}

Test(connect, passes_on_the_brokers_refusal)
{
    expect_refusal(HANDSHAKE_REFUSE, -EDQUOT, "too many connections of uid 7");
}

Test(connect, gives_up_on_a_silent_broker)
{
    expect_refusal(HANDSHAKE_SILENT, -ETIMEDOUT, "did not answer in time");
}

Test(connect, refuses_what_is_no_broker)
{
    int before = open_fds();
    expect_refusal(HANDSHAKE_HANG_UP, -ECONNREFUSED, "hung up");
    expect_refusal(HANDSHAKE_SHORT, -EPROTO, "another protocol");
    expect_refusal(HANDSHAKE_BAD_MAGIC, -EPROTO, "another protocol");
    expect_refusal(HANDSHAKE_OTHER_LAYOUT, -EPROTO, "layout");
    cr_assert_eq(open_fds(), before);
}

Test(connect, refuses_a_welcome_that_says_what_it_may_not)
{
    int before = open_fds();
    expect_refusal(HANDSHAKE_UNKNOWN_FLAG, -EPROTO, "does not know");
    expect_refusal(HANDSHAKE_RESERVED, -EPROTO, "does not know");
    expect_refusal(HANDSHAKE_OWN_PRODUCER, -EPROTO, "not the one asked for");
    expect_refusal_of("me", HANDSHAKE_NO_PRODUCER, -EPROTO, "not the one asked for");
    expect_refusal(HANDSHAKE_FEWER_WATERMARKS, -EPROTO, "the watermark file is not sealed, or not");
    cr_assert_eq(open_fds(), before);
}

Test(connect, asks_for_a_producer_by_its_name_or_for_an_anonymous_one)
{
    struct fake fake = {.handshake = HANDSHAKE_GOOD, .max_batch_bytes = 12345678, .watermark_slots = 7};
    fake_start(&fake);
    walrus *handle = CONNECT(&fake, .producer = "a name", .flags = WALRUS_TAKE_OVER);
    cr_assert_eq(fake.hello.name_bytes, 6);
    cr_assert_str_eq(fake.hello.name, "a name");
    cr_assert_eq(fake.hello.flags, HELLO_TAKE_OVER);
    struct walrus_info info = {.size = sizeof info};
    cr_assert_eq(walrus_get_info(handle, &info), 0);
    cr_assert_eq(info.producer, fake.producer);
    cr_assert_eq(info.max_batch_bytes, 12345678);
    cr_assert_eq(info.reconnects, 0);
    walrus_close(handle);
    handle = CONNECT(&fake, .flags = WALRUS_RECONNECT);
    cr_assert_eq(fake.hello.name_bytes, 0);
    cr_assert_eq(fake.hello.producer, 0);
    cr_assert_eq(fake.hello.flags, HELLO_PRODUCER);
    cr_assert_eq(walrus_get_info(handle, &info), 0);
    cr_assert_neq(info.producer, 0);
    walrus_close(handle);
    fake.max_batch_bytes = 0;
    handle = CONNECT(&fake, .flags = 0);
    cr_assert_eq(fake.hello.flags, 0);
    cr_assert_eq(walrus_get_info(handle, &info), 0);
    cr_assert_eq(info.producer, 0);
    cr_assert_eq(info.max_batch_bytes, WALRUS_MAX_BATCH_BYTES);
    walrus_close(handle);
    fake_stop(&fake);
}

Test(connect, refuses_a_producer_name_that_is_none)
{
    char too_long[MAX_TOPIC_NAME + 2] = "";
    memset(too_long, 'n', sizeof too_long - 1);
    const char *const names[] = {"", "a\nb", too_long};
    walrus *handle;
    char words[300];
    struct walrus_connect_options options = {
        .size = sizeof options, .socket_path = "/nowhere/socket", .error = words, .error_size = sizeof words};
    for (size_t i = 0; i < array_count(names); i++) {
        options.producer = names[i];
        cr_assert_eq(walrus_connect(&handle, &options), -EINVAL);
        cr_assert_not_null(strstr(words, "producer's name"), "%s", words);
    }
    options.producer = NULL;
    options.flags = WALRUS_TAKE_OVER;
    cr_assert_eq(walrus_connect(&handle, &options), -EINVAL);
    cr_assert_not_null(strstr(words, "no name to take over"), "%s", words);
}

Test(connect, takes_exactly_five_good_descriptors)
{
    int before = open_fds();
    expect_refusal(HANDSHAKE_NO_FDS, -EPROTO, "0 descriptors");
    expect_refusal(HANDSHAKE_THREE_FDS, -EPROTO, "3 descriptors");
    expect_refusal(HANDSHAKE_SIX_FDS, -EPROTO, "6 descriptors");
    expect_refusal(HANDSHAKE_UNSEALED, -EPROTO, "not sealed");
    expect_refusal(HANDSHAKE_SHORT_FILE, -EPROTO, "not sealed, or not");
    expect_refusal(HANDSHAKE_PIPE_FOR_DOORBELL, -EPROTO, "where eventfds belong");
    expect_refusal(HANDSHAKE_WORDS_DIFFER, -EPROTO, "first page");
    expect_refusal(HANDSHAKE_SIZES_WILD, -EPROTO, "sizes out of range");
    cr_assert_eq(open_fds(), before);
}

Test(connect, g25_leaves_no_descriptor_behind)
{
    struct fake fake = {.handshake = HANDSHAKE_GOOD};
    fake_start(&fake);
    walrus *handle = CONNECT(&fake, .arena_bytes = MIN_ARENA_BYTES);
    walrus_close(handle);
    fake_pause(&fake);
    fake_resume(&fake);
    int before = 0;
    for (int i = 0; i < 50; i++) {
        handle = CONNECT(&fake, .arena_bytes = MIN_ARENA_BYTES);
        cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, NULL, NULL), 0);
        if (i == 1)
            before = open_fds();
        if (i > 1)
            cr_assert_leq(open_fds(), before + 1);
        walrus_close(handle);
    }
    fake_stop(&fake);
}

Test(connect, many_handles_live_in_one_thread)
{
    struct fake one = {.handshake = HANDSHAKE_GOOD}, two = {.handshake = HANDSHAKE_GOOD};
    fake_start(&one);
    fake_start(&two);
    walrus *first = CONNECT(&one, .arena_bytes = MIN_ARENA_BYTES),
           *second = CONNECT(&two, .arena_bytes = MIN_ARENA_BYTES);
    cr_assert_eq(walrus_append_for_topic(first, "t", "x", 1, NULL, NULL), 0);
    cr_assert_eq(walrus_append_for_topic(second, "t", "x", 1, NULL, NULL), 0);
    walrus_close(first);
    cr_assert_eq(walrus_append_for_topic(second, "t", "x", 1, NULL, NULL), 0);
    walrus_close(second);
    fake_stop(&one);
    fake_stop(&two);
    cr_assert_eq(one.commits, 1);
    cr_assert_eq(two.commits, 2);
}
