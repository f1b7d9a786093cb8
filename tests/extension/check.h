/* Ends the program with 1, and says which expression did not hold. */
#include <stdio.h>
#include <stdlib.h>

#define CHECK(what, detail) \
  do { \
    if (!(what)) { \
      fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #what, (detail)); \
      exit(1); \
    } \
  } while (0)
