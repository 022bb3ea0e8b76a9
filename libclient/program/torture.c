/* torture.c: `walrus torture`: another program does it, which holds a simulator and more; this one finds it.
 *
 * Installed, walrus-torture lies in the folder for programs that only programs run, and walrusd beside this
 * one (or among those for administrators). In a build folder each lies where its part is built. */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "command.h"

#define NAME "torture"

/* The folder of this program, without a slash at its end. */
static bool own_folder(char folder[PATH_MAX])
{
    ssize_t length = readlink("/proc/self/exe", folder, PATH_MAX - 1);
    if (length <= 0)
        return false;
    folder[length] = '\0';
    char *slash = strrchr(folder, '/');
    if (slash == NULL)
        return false;
    *slash = '\0';
    return true;
}

/* The first of these that can be run: below this program's folder, or (with a slash in front) as it stands.
 * */
static bool find(const char *folder, const char *const *places, char path[PATH_MAX])
{
    for (; *places != NULL; places++) {
        int length = **places == '/' ? snprintf(path, PATH_MAX, "%s", *places)
                                     : snprintf(path, PATH_MAX, "%s/%s", folder, *places);
        if (length > 0 && length < PATH_MAX && access(path, X_OK) == 0)
            return true;
    }
    return false;
}

int command_torture(int argc, char **argv)
{
    static const char *const programs[] = {
        "../../tests/torture/walrus-torture", "../" LIBEXECDIR "/walrus-torture",
        PREFIX "/" LIBEXECDIR "/walrus-torture", LIBEXECDIR "/walrus-torture", NULL};
    static const char *const brokers[] = {"walrusd", "../../broker/program/walrusd", "../" SBINDIR "/walrusd",
                                          NULL};
    char folder[PATH_MAX], program[PATH_MAX], broker[PATH_MAX];
    if (!own_folder(folder) || !find(folder, programs, program)) {
        complain(NAME, "walrus-torture is not installed: it belongs into " PREFIX "/" LIBEXECDIR);
        return EXIT_FAILED;
    }
    char **words = calloc((size_t)argc + 3, sizeof *words);
    if (words == NULL) {
        complain(NAME, "out of memory");
        return EXIT_FAILED;
    }
    char option[] = "--walrusd";
    int count = 0;
    words[count++] = argv[0];
    if (find(folder, brokers, broker)) {
        words[count++] = option;
        words[count++] = broker;
    }
    memcpy(words + count, argv + 1, (size_t)(argc - 1) * sizeof *words);
    execv(program, words);
    complain(NAME, "cannot run %s: %s", program, strerror(errno));
    free(words);
    return EXIT_FAILED;
}
