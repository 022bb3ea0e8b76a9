/* Built against the installed tree as C99 and as C++11: the header must be clean in both, and the library
 * must link. */
#include <walrus.h>

#include <stdio.h>
#include <string.h>

int main(void)
{
    if (strcmp(walrus_version(), WALRUS_VERSION_STRING) != 0)
        return 1;
    puts(walrus_version());
    walrus_close(NULL);
    return 0;
}
