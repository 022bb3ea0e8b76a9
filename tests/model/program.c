/* program.c: walrus-model, the search from the command line. */
#include "model.h"

#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char usage[] =
    "usage: walrus-model [--faults N] [--crashes N] [--program NAME | --all] [--drop RULE]... [--limit "
    "STATES]\n"
    "                    [--deep] [--variants | --survey] [--quiet] [--list]\n"
    "  --faults, --crashes   the budget of each run, 0 to 3 (default 1 and 1)\n"
    "  --drop RULE           leave a rule of the protocol out\n"
    "  --variants            each rule left out where that must be found; --survey: in every program\n"
    "  --deep                all programs with two faults and two crashes\n"
    "  --limit STATES        stop a search there (it then says so)\n"
    "  --list                programs and rules\n";

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static bool search_one(struct options *options, const struct program *program)
{
    struct result result;
    double began = seconds();
    options->program = program;
    search(options, &result);
    printf("%-20s %u/%u  states %10llu  runs %12llu  values %6u  %7.1f s  %s%s\n", program->name,
           options->faults, options->crashes, (unsigned long long)result.states,
           (unsigned long long)result.runs, result.values, seconds() - began,
           result.violation != NULL ? "VIOLATION: " : "",
           result.violation != NULL ? result.violation
           : result.complete        ? "ok"
                                    : "ok so far, stopped at the limit");
    fflush(stdout);
    return result.violation == NULL;
}

static bool search_all(struct options *options)
{
    bool ok = true;
    for (size_t i = 0; i < program_count; i++)
        ok &= search_one(options, &programs[i]);
    return ok;
}

static bool search_dropped(const struct options *base, unsigned rule, const struct program *program,
                           unsigned faults, unsigned crashes)
{
    struct result result;
    struct options o = *base;
    double began = seconds();
    o.program = program;
    o.faults = faults;
    o.crashes = crashes;
    o.dropped[rule] = true;
    o.words = NULL;
    search(&o, &result);
    printf("without %-20s %-18s %u/%u %9llu states %6.1f s  %s\n", rule_names[rule], program->name, faults,
           crashes, (unsigned long long)result.states, seconds() - began,
           result.violation != NULL ? result.violation : "nothing found");
    fflush(stdout);
    return result.violation != NULL;
}

/* Each rule left out must be found out. */
static bool search_variants(const struct options *base)
{
    bool ok = true;
    for (unsigned rule = 0; rule < RULE_COUNT; rule++) {
        const struct variant *v = &variants[rule];
        if (v->program == NULL) {
            printf("without %-20s a second line of defence\n", rule_names[rule]);
            continue;
        }
        ok &= search_dropped(base, rule, program_find(v->program), v->faults, v->crashes);
    }
    return ok;
}

/* Which programs find it, and with how much. */
static void survey(const struct options *base)
{
    for (unsigned rule = 0; rule < RULE_COUNT; rule++)
        for (size_t i = 0; i < program_count; i++)
            (void)search_dropped(base, rule, &programs[i], base->faults, base->crashes);
}

static int list(void)
{
    printf("programs:\n");
    for (size_t i = 0; i < program_count; i++)
        printf("  %-20s %s\n", programs[i].name, programs[i].about);
    printf("rules:\n");
    for (unsigned i = 0; i < RULE_COUNT; i++)
        printf("  %-20s %s\n", rule_names[i], rule_words[i]);
    return 0;
}

static bool drop(struct options *options, const char *name)
{
    for (unsigned i = 0; i < RULE_COUNT; i++)
        if (strcmp(rule_names[i], name) == 0)
            return options->dropped[i] = true;
    fprintf(stderr, "walrus-model: no rule \"%s\"; --list names them\n", name);
    return false;
}

int main(int argc, char **argv)
{
    static const struct option long_options[] = {{"faults", required_argument, NULL, 'f'},
                                                 {"crashes", required_argument, NULL, 'c'},
                                                 {"program", required_argument, NULL, 'p'},
                                                 {"drop", required_argument, NULL, 'd'},
                                                 {"limit", required_argument, NULL, 'l'},
                                                 {"all", no_argument, NULL, 'a'},
                                                 {"deep", no_argument, NULL, 'D'},
                                                 {"variants", no_argument, NULL, 'v'},
                                                 {"survey", no_argument, NULL, 's'},
                                                 {"quiet", no_argument, NULL, 'q'},
                                                 {"list", no_argument, NULL, 'L'},
                                                 {"help", no_argument, NULL, 'h'},
                                                 {NULL, 0, NULL, 0}};
    struct options options = {.faults = 1, .crashes = 1, .words = stdout};
    const struct program *program = NULL;
    bool all_variants = false, all_programs = false;
    for (int c; (c = getopt_long(argc, argv, "", long_options, NULL)) != -1;) {
        switch (c) {
        case 'f':
            options.faults = (unsigned)strtoul(optarg, NULL, 10) & 3;
            break;
        case 'c':
            options.crashes = (unsigned)strtoul(optarg, NULL, 10) & 3;
            break;
        case 'p':
            program = program_find(optarg);
            if (program == NULL) {
                fprintf(stderr, "walrus-model: no program \"%s\"; --list names them\n", optarg);
                return 2;
            }
            break;
        case 'd':
            if (!drop(&options, optarg))
                return 2;
            break;
        case 'l':
            options.limit = strtoull(optarg, NULL, 10);
            break;
        case 'a':
            program = NULL;
            break;
        case 'D':
            options.faults = options.crashes = 2;
            break;
        case 'v':
            all_variants = true;
            break;
        case 's':
            all_programs = true;
            break;
        case 'q':
            options.words = NULL;
            break;
        case 'L':
            return list();
        default:
            fputs(usage, c == 'h' ? stdout : stderr);
            return c == 'h' ? 0 : 2;
        }
    }
    if (all_programs) {
        survey(&options);
        return 0;
    }
    bool ok = all_variants      ? search_variants(&options)
              : program != NULL ? search_one(&options, program)
                                : search_all(&options);
    return ok ? 0 : 1;
}
