#include "paths.h"

#include <sys/stat.h>
#include <unistd.h>

bool paths_instance_valid(const char *instance)
{
    size_t length = strnlen(instance, PATHS_INSTANCE_MAX + 1);
    if (length == 0 || length > PATHS_INSTANCE_MAX || instance[0] == '.')
        return false;
    static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    return strspn(instance, allowed) == length;
}

static const char *absolute_variable(const char *name)
{
    const char *value = getenv(name);
    return value != NULL && value[0] == '/' ? value : NULL;
}

/* TMP/walrus-UID; whoever made it first could own everything in it, so an existing one is looked at. */
static int temporary_folder(char *out, size_t size, struct error *err)
{
    const char *base = absolute_variable("TMPDIR");
    int n = snprintf(out, size, "%s/walrus-%u", base != NULL ? base : "/tmp", (unsigned)geteuid());
    if (n < 0 || (size_t)n >= size)
        return error_set(err, -ENAMETOOLONG,
                         "the path of the temporary folder is too long: set TMPDIR to a shorter one");
    struct stat st;
    if (lstat(out, &st) != 0)
        return 0; /* the broker makes it, 0700; for a client there is nobody to talk to */
    if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 077) != 0)
        return error_set(err, -EACCES,
                         "%s is not a private folder of this user (uid %u, mode 0700): remove it, or give "
                         "the paths by hand",
                         out, (unsigned)geteuid());
    return 0;
}

static int join(char *out, size_t size, const char *folder, const char *instance, const char *file,
                struct error *err)
{
    bool named = instance != NULL && instance[0] != '\0';
    int n = snprintf(out, size, "%s%s%s%s", folder, named ? "/" : "", named ? instance : "", file);
    if (n < 0 || (size_t)n >= size)
        return error_set(err, -ENAMETOOLONG,
                         "the default path under %s is too long: give a shorter one by hand", folder);
    return 0;
}

static int check_instance(const char *instance, struct error *err)
{
    if (instance == NULL || instance[0] == '\0' || paths_instance_valid(instance))
        return 0;
    return error_set(err, -EINVAL,
                     "instance \"%.80s\" is not a key: use 1 to %u letters, digits, '.', '_' or '-', not "
                     "beginning with '.'",
                     instance, PATHS_INSTANCE_MAX);
}

int paths_default_socket(char *out, size_t size, const char *instance, struct error *err)
{
    int rc = check_instance(instance, err);
    if (rc != 0)
        return rc;
    char folder[512];
    if (geteuid() == 0) {
        snprintf(folder, sizeof folder, "/run/walrus");
    } else if (absolute_variable("XDG_RUNTIME_DIR") != NULL) {
        int n = snprintf(folder, sizeof folder, "%s/walrus", absolute_variable("XDG_RUNTIME_DIR"));
        if (n < 0 || (size_t)n >= sizeof folder)
            return error_set(err, -ENAMETOOLONG, "XDG_RUNTIME_DIR is too long for a socket path");
    } else {
        rc = temporary_folder(folder, sizeof folder, err);
        if (rc != 0)
            return rc;
    }
    return join(out, size, folder, instance, "/walrus.sock", err);
}

int paths_default_data_folder(char *out, size_t size, const char *instance, struct error *err)
{
    int rc = check_instance(instance, err);
    if (rc != 0)
        return rc;
    char folder[3072];
    int n;
    if (geteuid() == 0) {
        n = snprintf(folder, sizeof folder, "/var/lib/walrus");
    } else if (absolute_variable("XDG_STATE_HOME") != NULL) {
        n = snprintf(folder, sizeof folder, "%s/walrus", absolute_variable("XDG_STATE_HOME"));
    } else if (absolute_variable("HOME") != NULL) {
        n = snprintf(folder, sizeof folder, "%s/.local/state/walrus", absolute_variable("HOME"));
    } else {
        rc = temporary_folder(folder, sizeof folder - 16, err);
        if (rc != 0)
            return rc;
        size_t length = strlen(folder);
        n = (int)length + snprintf(folder + length, sizeof folder - length, "/store");
    }
    if (n < 0 || (size_t)n >= sizeof folder)
        return error_set(err, -ENAMETOOLONG, "the default data folder's path is too long: use --data-dir");
    return join(out, size, folder, instance, "", err);
}
