/* main.c: walrus-hostile: options, episodes, and what is said at the end. See hostile.h. */
#include "hostile.h"

#include <argp.h>
#include <limits.h>
#include <sys/random.h>
#include <unistd.h>

const struct attack attacks[] = {
    {"wild-tail", 19, attack_wild_tail, "sq_tail rewritten all the time"},
    {"wild-head", 19, attack_wild_head, "cq_head rewritten all the time"},
    {"wild-wake", 19, attack_wild_wake, "wake_at and window_head rewritten all the time"},
    {"wild-words", 19, attack_wild_words, "the whole first page of the client file rewritten all the time"},
    {"flip-descriptors", 20, attack_flip_descriptors, "descriptors changed after they were published"},
    {"flip-payload", 20, attack_flip_payload, "payload and records changed while they are copied"},
    {"grow-lengths", 20, attack_grow_lengths, "lengths that grow after the check"},
    {"punch-holes", 20, attack_punch_holes, "the client file hole-punched while it is read"},
    {"flip-chunks", 20, attack_flip_chunks, "chunks of a stream changed while they are copied"},
    {"bad-lengths", 21, attack_bad_lengths, "offsets, lengths and counts that overflow or are out of range"},
    {"bad-names", 21, attack_bad_names, "topic names of every wrong kind"},
    {"wild-descriptors", 21, attack_wild_descriptors,
     "every field of a descriptor at the edges of its range"},
    {"wild-reads", 21, attack_wild_reads,
     "reads from anywhere into a window that is never, or wrongly, released"},
    {"file-tricks", 22, attack_file_tricks, "truncate, grow, seal, punch, map and write what is read-only"},
    {"file-run", 22, attack_file_run, "run the shared memory as a program"},
    {"file-signals", 22, attack_file_signals, "turn shared descriptors and the process against the broker"},
    {"event-full", 23, attack_event_full, "full eventfds without O_NONBLOCK"},
    {"event-steal", 23, attack_event_steal, "the doorbell read in a loop"},
    {"event-flood", 23, attack_event_flood, "the doorbell rung all the time"},
    {"event-copies", 23, attack_event_copies, "descriptors closed, copied, kept beyond the connection"},
    {"stopped", 24, attack_stopped, "stopped with a full completion ring"},
    {"never-reads", 24, attack_never_reads, "never reaps, never reads, never leaves"},
    {"half-open", 24, attack_half_open, "connections that never say hello"},
    {"full-socket", 24, attack_full_socket, "welcomes that nobody receives"},
    {"stalled-streams", 24, attack_stalled_streams, "streams that never end"},
    {"kill-publish", 25, attack_kill_publish, "killed before, during and after publishing"},
    {"kill-stream", 25, attack_kill_stream, "killed in the middle of a stream"},
    {"kill-hello", 25, attack_kill_hello, "killed in the handshake"},
    {"fork-keeps", 25, attack_fork_keeps,
     "killed, while a forked child keeps everything and goes on writing"},
    {"flood-connect", 26, attack_flood_connect, "connections by the thousand"},
    {"flood-hello", 26, attack_flood_hello, "handshakes by the thousand"},
    {"flood-fds", 26, attack_flood_fds, "253 descriptors in a message"},
    {"strange-fds", 26, attack_strange_fds, "descriptors of io_uring, fuse, folders, sockets"},
    {"bad-hellos", 26, attack_bad_hellos, "hellos that are cut, long, random, late"},
    {"big-arenas", 26, attack_big_arenas, "the largest arenas, made and dropped in a loop"},
    {"quota-connections", 27, attack_quota_connections, "connections until they are used up"},
    {"quota-shared", 27, attack_quota_shared, "shared memory until it is used up"},
    {"quota-topics", 27, attack_quota_topics, "topics by the thousand"},
    {"quota-streams", 27, attack_quota_streams, "streams and topic numbers until they are used up"},
    {"quota-names", 27, attack_quota_names, "producers' names by the thousand"},
    {"queue-flood", 27, attack_queue_flood, "thousands of batches waiting for one topic"},
    {"notify-flood", 27, attack_notify_flood, "thousands of refusals that want to be told"},
    {"deadlines", 27, attack_deadlines, "deadlines in the past, in the far future, negative"},
    {"greedy", 28, attack_greedy, "as much as it can write, to use up what all share"},
    {"take-name", 28, attack_take_name, "the honest producer's name, with and without taking over"},
    {"take-id", 28, attack_take_id, "the ids of others' producers"},
    {"own-take-over", 28, attack_own_take_over, "takes its own name over from itself without end"},
    {"read-counters", 28, attack_read_counters, "the broker's counters, files and memory"},
    {"numbers-twice", 29, attack_numbers_twice,
     "the same number at once, after 0, after a refusal, going back"},
    {"numbers-wild", 29, attack_numbers_wild, "numbers, queries and cancels of any value"},
    {"numbers-death", 29, attack_numbers_death, "the same numbers again after its death"},
};
const unsigned attack_count = array_count(attacks);

/* ------------------------------------------------------------------------------------- options */

enum {
    KEY_SEED = 1000,
    KEY_SECONDS,
    KEY_ATTACK,
    KEY_LIST,
    KEY_BROKER,
    KEY_WALRUS,
    KEY_ATTACKERS,
    KEY_KEEP,
    KEY_SHARED
};

static const struct argp_option argp_list[] = {
    {"seed", KEY_SEED, "N", 0, "What is done, and in which order (default: a new one)", 0},
    {"seconds", KEY_SECONDS, "S", 0,
     "Length of the attacks (4). Beyond 30: in episodes of 30, each with a new store", 0},
    {"attack", KEY_ATTACK, "NAME", 0, "Only this one", 0},
    {"attackers", KEY_ATTACKERS, "N", 0, "Processes at a time, 1 to 3 (default: by the seed)", 0},
    {"list", KEY_LIST, NULL, 0, "Names the attacks", 0},
    {"broker", KEY_BROKER, "PATH", 0, "walrusd (default: the one of the same build)", 0},
    {"walrus", KEY_WALRUS, "PATH", 0, "walrus, for `walrus check` (default: as above)", 0},
    {"shared", KEY_SHARED, NULL, 0,
     "Other work is on these cores: the honest client's throughput is told and not judged", 0},
    {"keep", KEY_KEEP, NULL, 0, "Keep the store after a failure", 0},
    {0},
};

static void list_attacks(void)
{
    for (unsigned i = 0; i < attack_count; i++)
        printf("%-18s row %d: %s\n", attacks[i].name, attacks[i].row, attacks[i].words);
}

static uint64_t number(struct argp_state *state, const char *text, uint64_t most)
{
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 0);
    if (errno != 0 || end == text || *end != '\0' || text[0] == '-' || value > most)
        argp_error(state, "\"%s\" is not a number up to %llu", text, (unsigned long long)most);
    return value;
}

static bool attack_known(const char *name)
{
    for (unsigned i = 0; i < attack_count; i++)
        if (strcmp(attacks[i].name, name) == 0)
            return true;
    return false;
}

static error_t parse(int key, char *text, struct argp_state *state)
{
    struct options *options = state->input;
    switch (key) {
    case KEY_SEED:
        options->seed = number(state, text, UINT64_MAX);
        return 0;
    case KEY_SECONDS:
        options->seconds = (unsigned)number(state, text, 1000000);
        return 0;
    case KEY_ATTACKERS:
        options->attackers = (unsigned)number(state, text, MAX_ATTACKERS);
        return 0;
    case KEY_ATTACK:
        if (!attack_known(text))
            argp_error(state, "there is no attack \"%s\" (see --list)", text);
        options->attack = text;
        return 0;
    case KEY_LIST:
        list_attacks();
        exit(0);
    case KEY_BROKER:
        snprintf(options->broker, sizeof options->broker, "%s", text);
        return 0;
    case KEY_WALRUS:
        snprintf(options->check, sizeof options->check, "%s", text);
        return 0;
    case KEY_SHARED:
        options->shared = true;
        return 0;
    case KEY_KEEP:
        options->keep = true;
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "unexpected argument \"%s\"", text);
        return EINVAL;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* Of the build that this program is of: BUILD/tests/hostile/walrus-hostile. */
static void find_programs(struct options *options)
{
    char self[512] = "";
    if (readlink("/proc/self/exe", self, sizeof self - 1) <= 0)
        return;
    for (int i = 0; i < 3 && strrchr(self, '/') != NULL; i++)
        *strrchr(self, '/') = '\0';
    snprintf(options->broker, sizeof options->broker, "%s/broker/program/walrusd", self);
    snprintf(options->check, sizeof options->check, "%s/libclient/program/walrus", self);
}

/* ------------------------------------------------------------------------------------- at the end */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(const double *values, unsigned count)
{
    static double sorted[MAX_SLOTS];
    if (count == 0)
        return 0;
    memcpy(sorted, values, count * sizeof *values);
    qsort(sorted, count, sizeof *sorted, by_value);
    return sorted[count / 2];
}

static void say_worst(const struct rates *rates)
{
    bool said[array_count(attacks)] = {false};
    for (int n = 0; n < 8; n++) {
        unsigned worst = attack_count;
        for (unsigned i = 0; i < attack_count; i++) {
            const struct tally *tally = &rates->tallies[i];
            if (!said[i] && tally->slots > 0 &&
                (worst == attack_count || tally->ratio_sum / tally->slots <
                                              rates->tallies[worst].ratio_sum / rates->tallies[worst].slots))
                worst = i;
        }
        if (worst == attack_count)
            return;
        said[worst] = true;
        printf("  %-18s %.2f of the quiet rate in its slots, %.2f in the worst of %u\n", attacks[worst].name,
               rates->tallies[worst].ratio_sum / rates->tallies[worst].slots,
               rates->tallies[worst].ratio_least, rates->tallies[worst].slots);
    }
}

static int judge(const struct campaign *run)
{
    const struct rates *rates = run->rates;
    double quiet = median(rates->quiet, rates->count);
    double attacked = median(rates->attacked, rates->count);
    double ratio = quiet > 0 ? attacked / quiet : 0;
    unsigned tried = 0;
    for (unsigned i = 0; i < attack_count; i++)
        tried += rates->tallies[i].slots > rates->tallies[i].not_tried;
    printf("%u of %u attacks in %u slots; honest batches/s: %.0f quiet, %.0f attacked (medians), ratio %.2f; "
           "its "
           "slowest answer took %.1f ms\n",
           tried, attack_count, rates->count, quiet, attacked, ratio, (double)run->slowest_ns / (double)MS);
    say_worst(rates);
    if (run->options->seconds > SHORT_SECONDS && !run->options->shared && ratio < 0.5) {
        fprintf(stderr,
                "walrus-hostile: FAILED: the honest client kept %.2f of its throughput, less than half\n",
                ratio);
        return 1;
    }
    return 0;
}

static void say_replay(const struct options *options, uint64_t seed, int64_t budget_ns)
{
    fprintf(stderr, "walrus-hostile: replay with: %s --seed %llu --seconds %u%s%s", options->program,
            (unsigned long long)seed, (unsigned)(budget_ns / SECOND),
            options->attack != NULL ? " --attack " : "", options->attack != NULL ? options->attack : "");
    if (options->attackers != 0)
        fprintf(stderr, " --attackers %u", options->attackers);
    fprintf(stderr, " --broker %s --walrus %s\n", options->broker, options->check);
}

static int run_all(const struct options *options)
{
    struct campaign run = {.options = options};
    run.rates = calloc(1, sizeof *run.rates);
    if (run.rates == NULL)
        return 1;
    run.rates->tallies = calloc(attack_count, sizeof *run.rates->tallies);
    int result = run.rates->tallies == NULL ? 1 : 0;
    int64_t left = (int64_t)options->seconds * SECOND;
    struct rng rng = {.state = options->seed};
    for (uint64_t seed = options->seed; left > 0 && result == 0; seed = rng_next(&rng)) {
        int64_t budget = left < EPISODE_NS ? left : EPISODE_NS;
        struct error err = {0};
        if (conduct(&run, seed, budget, &err) != 0) {
            fprintf(stderr, "walrus-hostile: FAILED: seed %llu: %s\n", (unsigned long long)seed, err.text);
            say_replay(options, seed, budget);
            result = 1;
        }
        left -= budget;
    }
    if (result == 0) {
        result = judge(&run);
        if (result != 0)
            say_replay(options, options->seed, (int64_t)options->seconds * SECOND);
    }
    free(run.rates->tallies);
    free(run.rates);
    return result;
}

int main(int argc, char **argv)
{
    static const struct argp argp = {
        .options = argp_list,
        .parser = parse,
        .doc = "Attacks a broker in every way of a hostile client, while an honest one's ledger is checked.\v"
               "As root the honest client and the attackers run as two other users; else all have one."};
    struct options options = {.seconds = 4, .program = argv[0]};
    if (getrandom(&options.seed, sizeof options.seed, 0) != (ssize_t)sizeof options.seed)
        options.seed = (uint64_t)now_ns();
    find_programs(&options);
    if (argp_parse(&argp, argc, argv, 0, NULL, &options) != 0)
        return 2;
    if (geteuid() != 0)
        fprintf(stderr,
                "walrus-hostile: not root: honest client and attackers are one user; what needs two is "
                "left out\n");
    return run_all(&options);
}
