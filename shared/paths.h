/* paths.h: where broker and client meet when nobody says where. Needs libc only.
 *
 *                     data folder                              socket
 *   root              /var/lib/walrus                          /run/walrus/walrus.sock
 *   others            $XDG_STATE_HOME/walrus, else             $XDG_RUNTIME_DIR/walrus/walrus.sock, else
 *                     $HOME/.local/state/walrus, else          TMP/walrus-UID/walrus.sock
 *                     TMP/walrus-UID/store
 *   with an instance  .../KEY                                  .../KEY/walrus.sock
 *
 * TMP is $TMPDIR, else /tmp. A folder there may have been made by anybody, so TMP/walrus-UID is used only if
 * it is a folder (no link) of this user's that nobody else can enter. Variables that are empty or not
 * absolute count as unset. An instance key belongs to these defaults and to a data folder given by hand; a
 * socket path given by hand is used as it is. */
#ifndef WALRUS_SHARED_PATHS_H
#define WALRUS_SHARED_PATHS_H

#include "base.h"

#define PATHS_SOCKET_MAX   107u /* characters a socket path may have (sun_path without its NUL) */
#define PATHS_INSTANCE_MAX 64u

/* An instance key is 1 to 64 of A-Z a-z 0-9 . _ - and does not begin with a dot. */
bool paths_instance_valid(const char *instance) must_check;

/* The default socket path; `instance` may be NULL or "". Creates nothing. 0; -EINVAL bad instance;
 * -ENAMETOOLONG; -EACCES TMP/walrus-UID exists and is not to be trusted. */
int paths_default_socket(char *out, size_t size, const char *instance, struct error *err) must_check;
/* The same for the data folder. */
int paths_default_data_folder(char *out, size_t size, const char *instance, struct error *err) must_check;

#endif
