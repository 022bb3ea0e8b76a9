#include "harness.h"
#include "folder.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static struct rig rig;
static struct client client;
static uint32_t topic;

static void start(void)
{
    rig_start(&rig, NULL, 0);
    client_connect(&rig, &client);
    topic = client_topic(&rig, &client, "t");
}

/* Some of these end in the middle. */
static void remove_folder(void)
{
    if (rig.folder[0] != '\0')
        folder_remove(rig.folder);
}

TestSuite(stop, .fini = remove_folder);

Test(stop, commits_what_was_published_and_answers_the_rest_shutdown)
{
    start();
    struct descriptor follow = {
        .op = OP_READ, .topic = topic, .flags = DESCRIPTOR_FOLLOW, .number = 1, .user_data = 1};
    struct descriptor chunk = client_text(&client, topic, 0, "chunk");
    chunk.op = OP_CHUNK;
    chunk.flags = DESCRIPTOR_FIRST;
    chunk.user_data = 2;
    client_push(&client, &follow);
    cr_assert_eq(client_call(&rig, &client, &chunk).result, 0);
    for (uint64_t i = 0; i < 5; i++) {
        struct descriptor d = client_text(&client, topic, 64, "x");
        d.user_data = 10 + i;
        client_push(&client, &d);
    }
    rig.log.hold_answers = false;
    int silent = client_dial(&rig);
    cr_assert_eq(server_stop(rig.server, INT64_C(5000000000)), 0);
    cr_assert_eq(fake_topic(&rig.log, "t")->count, 5);
    cr_assert_eq(fake_topic(&rig.log, "t")->batches, 0, "the stream was rolled back");
    cr_assert_eq(fake_references(&rig.log), 0);
    int done = 0;
    int shutdown = 0;
    struct completion completion;
    while (client_pop(&client, &completion)) {
        done += completion.result == 0;
        shutdown += completion.result == -ESHUTDOWN && completion.user_data == 1;
    }
    cr_assert_eq(done, 5);
    cr_assert_eq(shutdown, 1, "the follow ended");

    struct descriptor late = client_text(&client, topic, 64, "x"); /* after the stop began */
    late.user_data = 77;
    client_push(&client, &late);
    server_destroy(rig.server);
    cr_assert(client_pop(&client, &completion));
    cr_assert_eq(completion.user_data, 77);
    cr_assert_eq(completion.result, -ESHUTDOWN);
    cr_assert(client_ended(&client));
    close(silent);
}

Test(stop, does_not_wait_for_ever_for_the_log)
{
    start();
    rig.log.hold_answers = true;
    struct descriptor d = client_text(&client, topic, 64, "x");
    client_push(&client, &d);
    rig_turn(&rig, 20);
    cr_assert_eq(server_stop(rig.server, 20000000), -ETIMEDOUT);
}

Test(stop, ends_with_a_hostile_client_in_the_room)
{
    start();
    word_store_release(&client.words->sq_tail, client.sq.mirror.p_tail + 1000);
    cr_assert_eq(server_stop(rig.server, INT64_C(5000000000)), 0);
    server_destroy(rig.server);
    cr_assert(client_ended(&client));
}

Test(stop, g10_a_failed_log_ends_the_turn_and_answers_nothing)
{
    start();
    struct descriptor d = client_text(&client, topic, 64, "x");
    rig.log.hold_answers = true;
    client_push(&client, &d);
    rig_turn(&rig, 20);
    rig.log.fail_on_turn = true;
    cr_assert_eq(server_turn(rig.server), -EIO);
    struct completion completion;
    cr_assert_not(client_pop(&client, &completion));
    cr_assert_eq(server_turn(rig.server), -EIO);
    cr_assert_not(client_pop(&client, &completion));
}

Test(stat, the_counters_file_says_what_happened)
{
    char path[] = "/tmp/walrus-stat-test-XXXXXX";
    int fd = mkstemp(path);
    cr_assert_geq(fd, 0);
    close(fd);
    struct error err = {0};
    struct stat_page *page = NULL;
    cr_assert_eq(stat_file_create(path, 0640, &page, &err), 0, "%s", err.text);
    struct stat st;
    cr_assert_eq(stat(path, &st), 0);
    cr_assert_eq(st.st_size, STAT_PAGE_BYTES);
    struct stat_identity identity = {.broker_pid = 5};
    stat_page_begin(page, &identity);
    struct server_options options = {.stat = page};
    rig_start(&rig, &options, 0);
    client_connect(&rig, &client);
    topic = client_topic(&rig, &client, "t");
    struct descriptor d = client_text(&client, topic, 64, "x");
    cr_assert_eq(client_call(&rig, &client, &d).result, 0);
    struct stat_snapshot snapshot = {0};
    for (int i = 0; i < 10000000 && snapshot.values.log_entries == 0; i++) {
        rig_turn(&rig, 1);
        int rc = stat_page_read(page, STAT_PAGE_BYTES, &snapshot);
        cr_assert(rc == 0 || rc == -EAGAIN);
    }
    cr_assert_eq(snapshot.identity.broker_pid, 5);
    cr_assert_eq(snapshot.values.log_entries, 1);
    cr_assert_eq(snapshot.values.session_connections, 1);
    cr_assert_eq(snapshot.values.session_completions, 2);
    cr_assert_gt(snapshot.values.loop_turns, 0);
    client_close(&client);
    rig_turn(&rig, 40);
    rig_stop(&rig);
    cr_assert_eq(stat_page_read(page, STAT_PAGE_BYTES, &snapshot), 0);
    cr_assert_eq(snapshot.loop.state, STAT_LOOP_STOPPING);
    stat_file_close(page);
    unlink(path);
}

Test(stat, a_counters_file_that_cannot_be_made_is_said_with_its_path)
{
    struct error err = {0};
    struct stat_page *page = NULL;
    cr_assert_eq(stat_file_create("/nowhere/at/all.stat", 0600, &page, &err), -ENOENT);
    cr_assert_not_null(strstr(err.text, "/nowhere/at/all.stat"));
}
