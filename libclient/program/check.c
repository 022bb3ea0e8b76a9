/* check.c: `walrus check`: reads a stopped store from end to end and says what is damaged, where. Changes
 * nothing. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "../../broker/io/io.h"
#include "../../broker/log/check.h"
#include "../../shared/message.h"
#include "command.h"

#define NAME "check"

struct checking {
    const char *folder;
    bool json;
    json_t *findings;
    bool out_of_memory;
};

static const char *kind_word(enum finding_kind kind)
{
    switch (kind) {
    case FINDING_DAMAGE:
        return "damage";
    case FINDING_TORN:
        return "torn";
    case FINDING_NOTE:
        return "note";
    }
    return "unknown";
}

/* "damage: segment 3 (00000003.segment), offset 8192, topic 'x', batch at entry 12: WORDS" */
static void print_finding(const struct finding *finding)
{
    struct shown shown;
    const char *between = " ";
    printf("%s:", kind_word(finding->kind));
    if (finding->segment != 0) {
        printf("%ssegment %" PRIu64, between, finding->segment);
        between = ", ";
    }
    if (finding->file[0] != '\0') {
        printf("%sfile %s, offset %" PRIu64, between, show(&shown, finding->file), finding->offset);
        between = ", ";
    }
    if (finding->topic[0] != '\0') {
        printf("%stopic '%s'", between, show(&shown, finding->topic));
        between = ", ";
    }
    if (finding->sequence != 0) {
        printf("%sbatch at entry %" PRIu64, between, finding->sequence);
        between = ", ";
    }
    if (finding->batch != 0) {
        printf("%sbatch number %" PRIu64, between, finding->batch);
        between = ", ";
    }
    printf("%s %s\n", between[0] == ',' ? ":" : "", finding->text);
}

static bool set_number(json_t *object, const char *key, uint64_t value)
{
    return json_object_set_new(object, key, json_integer((json_int_t)value)) == 0;
}

static bool keep_finding(json_t *findings, const struct finding *finding)
{
    json_t *object = json_object();
    bool good = object != NULL;
    good = good && json_object_set_new(object, "kind", json_string(kind_word(finding->kind))) == 0;
    good = good && json_set_bytes(object, "file", finding->file, strlen(finding->file)) == 0;
    good = good && set_number(object, "segment", finding->segment) &&
           set_number(object, "offset", finding->offset);
    good = good && json_set_bytes(object, "topic", finding->topic, strlen(finding->topic)) == 0;
    good = good && set_number(object, "sequence", finding->sequence) &&
           set_number(object, "batch", finding->batch);
    good = good && json_set_bytes(object, "text", finding->text, strlen(finding->text)) == 0;
    if (good && json_array_append(findings, object) == 0) {
        json_decref(object);
        return true;
    }
    json_decref(object);
    return false;
}

static void found(void *context, const struct finding *finding)
{
    struct checking *checking = context;
    if (!checking->json)
        print_finding(finding);
    else if (!keep_finding(checking->findings, finding))
        checking->out_of_memory = true;
}

static bool print_report_json(struct checking *checking, const struct check_report *report)
{
    json_t *object = json_object();
    bool good = object != NULL && !checking->out_of_memory;
    good = good && json_set_bytes(object, "folder", checking->folder, strlen(checking->folder)) == 0;
    good = good && json_object_set_new(object, "store", json_string(report->store_id)) == 0;
    good = good && json_object_set_new(object, "sound", json_boolean(report->damaged == 0)) == 0;
    good = good && json_object_set_new(object, "clean_stop", json_boolean(report->clean_stop)) == 0;
    good = good && set_number(object, "epoch", report->epoch) &&
           set_number(object, "segments", report->segments);
    good = good && set_number(object, "groups", report->groups) &&
           set_number(object, "batches", report->batches);
    good = good && set_number(object, "entries", report->entries);
    good = good && set_number(object, "payload_bytes", report->payload_bytes);
    good = good && set_number(object, "topics", report->topics) &&
           set_number(object, "damaged", report->damaged);
    good = good && set_number(object, "torn", report->torn) && set_number(object, "notes", report->notes);
    good = good && json_object_set(object, "findings", checking->findings) == 0;
    if (good)
        return print_json(object);
    json_decref(object);
    errno = ENOMEM;
    return false;
}

static void print_report(const struct checking *checking, const struct check_report *report)
{
    struct shown shown;
    printf("%s: store %s, epoch %" PRIu64 ", %s: %" PRIu64 " segments, %" PRIu64 " groups, %" PRIu64
           " batches, %" PRIu64 " entries, %" PRIu64 " payload bytes, %" PRIu64 " topics; %" PRIu64
           " damaged, %" PRIu64 " torn, %" PRIu64 " notes\n",
           show(&shown, checking->folder), report->store_id, report->epoch,
           report->clean_stop ? "stopped cleanly" : "not stopped cleanly", report->segments, report->groups,
           report->batches, report->entries, report->payload_bytes, report->topics, report->damaged,
           report->torn, report->notes);
}

static int check(struct checking *checking)
{
    struct shown shown;
    struct stat st;
    if (stat(checking->folder, &st) != 0 || !S_ISDIR(st.st_mode)) {
        int error = S_ISDIR(st.st_mode) ? errno : ENOTDIR;
        complain(NAME, "%s: %s: give the data folder of a stopped broker", show(&shown, checking->folder),
                 strerror(error));
        return EXIT_FAILED;
    }
    struct error err = {0};
    struct io *io = NULL;
    struct io_real_options options = {
        .folder = checking->folder, .backend = IO_BACKEND_PWRITE, .watch_fd = -1, .allow_direct = true};
    char unused[128];
    struct check_report report = {0};
    int rc = io_real_create(&options, &io, unused, &err);
    if (rc == 0) {
        rc = log_check(io, found, checking, &report, &err);
        io->functions->destroy(io);
    }
    if (rc < 0) {
        (void)finish_output(NAME);
        complain(NAME, "%s: %s", show(&shown, checking->folder),
                 err.text[0] != '\0' ? err.text : strerror(-rc));
        return EXIT_FAILED;
    }
    bool printed = true;
    if (checking->json)
        printed = print_report_json(checking, &report);
    else
        print_report(checking, &report);
    if (!printed && errno == ENOMEM) {
        complain(NAME, "out of memory");
        return EXIT_FAILED;
    }
    int code = finish_output(NAME);
    if (report.damaged == 0)
        return code;
    complain(NAME, "%s: damaged in %" PRIu64 " place%s: see above; put the store back from a copy",
             show(&shown, checking->folder), report.damaged, report.damaged == 1 ? "" : "s");
    return EXIT_FAILED;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct checking *checking = state->input;
    switch (key) {
    case 'j':
        checking->json = true;
        return 0;
    case ARGP_KEY_ARG:
        if (state->arg_num > 0)
            argp_error(state, "one folder only; '%s' is one too many", arg);
        if (arg[0] == '\0')
            argp_error(state, "the folder's name is empty");
        checking->folder = arg;
        return 0;
    case ARGP_KEY_END:
        if (checking->folder == NULL)
            argp_error(state, "which data folder?");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

int command_check(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"json", 'j', NULL, 0, "One JSON object with all findings", 0}, {0}};
    static const struct argp argp = {
        options,
        parse,
        "DIR",
        "Read the stopped store in DIR from end to end; change nothing.\v"
        "Exit code 0: sound (a torn tail is normal after a crash: the next start cuts it). "
        "1: damaged, or it could not be read.",
        NULL,
        NULL,
        NULL};
    struct checking checking = {0};
    argp_parse(&argp, argc, argv, 0, NULL, &checking);
    checking.findings = json_array();
    if (checking.findings == NULL) {
        complain(NAME, "out of memory");
        return EXIT_FAILED;
    }
    int code = check(&checking);
    json_decref(checking.findings);
    return code;
}
