/* Stands in place of those programs of Wine that do nothing and end with 0, and of some that it lacks: loud. */
#include "lab.h"

int wmain(int count, wchar_t **words)
{
    wchar_t what[2048] = L"";
    for (int each = 0; each < count && wcslen(what) + wcslen(words[each]) + 2 < COUNT(what); each++) {
        const wchar_t *last = wcsrchr(words[each], L'\\');
        wcscat(what, each ? L" " : L"");
        wcscat(what, !each && last ? last + 1 : words[each]);
    }
    not_here(what);
    return NOT_HERE;
}
