/* What rusqlite calls and SQLite before 3.44 does not have, for tests that are linked with an
** old one. A newer SQLite's own functions come first.
**
** Data of a connection that was closed stays until the same address and name are used again. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct data {
  struct data *next;
  void *db;
  char *name;
  void *value;
  void (*destroy)(void *);
};
static struct data *first;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static struct data *find(void *db, const char *name) {
  struct data *data = first;
  while (data && (data->db != db || strcmp(data->name, name) != 0)) data = data->next;
  return data;
}

int sqlite3_set_clientdata(void *db, const char *name, void *value, void (*destroy)(void *)) {
  struct data *data;
  void *old = 0;
  void (*destroy_old)(void *) = 0;
  pthread_mutex_lock(&lock);
  data = find(db, name);
  if (data) {
    old = data->value;
    destroy_old = data->destroy;
  } else if ((data = malloc(sizeof *data))) {
    *data = (struct data){first, db, strdup(name), 0, 0};
    first = data;
  }
  if (data) {
    data->value = value;
    data->destroy = destroy;
  }
  pthread_mutex_unlock(&lock);
  if (old && destroy_old) destroy_old(old);
  return data ? 0 : 7;
}

void *sqlite3_get_clientdata(void *db, const char *name) {
  struct data *data;
  void *value;
  pthread_mutex_lock(&lock);
  data = find(db, name);
  value = data ? data->value : 0;
  pthread_mutex_unlock(&lock);
  return value;
}
