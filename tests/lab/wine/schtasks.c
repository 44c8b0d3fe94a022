/* schtasks.exe: tasks that really run, beside the one who starts them.
 *
 *   /Create /TN n /XML file | /TR command /SC ONCE /ST hh:mm  [/RU user [/RP password]] [/F]
 *   /Run /TN n    /End /TN n    /Delete /TN n /F    /Query [/TN n]
 *
 *   /Create ─► the XML in System32\Tasks, a key of TaskCache\Tree
 *   /Run ────► schtasks.exe /lab-run n, outside the caller's job: holds the mutex lab-task-n, starts the action,
 *              awaits it, writes its exit code.  Whoever finds the mutex knows that the task runs.
 *
 * No trigger ever fires, so a task with one is refused, but ONCE, the common way to make a task for /Run. Whom a
 * task runs as is noted and not lived, and no password is looked at: Wine has one account. A task has the variables
 * of who starts it.
 */
#include "lab.h"

#define TREE L"SOFTWARE\\Microsoft\\Windows NT\\CurrentVersion\\Schedule\\TaskCache\\Tree"
#define FILES L"C:\\Windows\\System32\\Tasks"
/* SCHED_S_TASK_RUNNING, _HAS_NOT_RUN, _TERMINATED */
#define RUNNING 0x41301
#define NEVER_RAN 0x41303
#define ENDED 0x41306
#define ROOM 16384

static wchar_t *name, *xml, *command, *user, *schedule;
static int force;

static HKEY task(int make)
{
    wchar_t path[1024];
    _snwprintf(path, COUNT(path) - 1, TREE L"\\%ls", name);
    path[COUNT(path) - 1] = 0;
    HKEY found = key(path, make);
    if (!found) {
        say(STD_ERROR_HANDLE, L"ERROR: The system cannot find the file specified.");
        ExitProcess(1);
    }
    return found;
}

static const wchar_t *named(const wchar_t *what)
{
    static wchar_t made[2][300];
    static int turn;
    turn = !turn;
    _snwprintf(made[turn], 299, L"lab-task-%ls%ls", name, what);
    return made[turn];
}

static int runs(void)
{
    HANDLE found = OpenMutexW(SYNCHRONIZE, FALSE, named(L""));
    if (found) CloseHandle(found);
    return found != NULL;
}

/* The file's text, whether UTF-16 with its mark or UTF-8. */
static wchar_t *read_file(const wchar_t *path)
{
    DWORD got;
    HANDLE file = CreateFileW(path, GENERIC_READ, FILE_SHARE_READ, NULL, OPEN_EXISTING, 0, NULL);
    if (file == INVALID_HANDLE_VALUE) {
        say(STD_ERROR_HANDLE, L"ERROR: The system cannot find the file specified.");
        ExitProcess(1);
    }
    DWORD size = GetFileSize(file, NULL);
    char *octets = calloc(size + 2, 1);
    wchar_t *made = calloc(size + 2, sizeof *made);
    if (!octets || !made || !ReadFile(file, octets, size, &got, NULL)) broken(path);
    CloseHandle(file);
    if (size > 2 && !memcmp(octets, "\xff\xfe", 2)) memcpy(made, octets + 2, size - 2);
    else MultiByteToWideChar(CP_UTF8, 0, octets + (memcmp(octets, "\xef\xbb\xbf", 3) ? 0 : 3), -1, made, size + 1);
    free(octets);
    return made;
}

/* The only element of that name: its text as XML reads it. */
static int element(const wchar_t *document, const wchar_t *which, wchar_t *into)
{
    static const struct { const wchar_t *written; wchar_t means; } known[] = {
        {L"&amp;", L'&'}, {L"&lt;", L'<'}, {L"&gt;", L'>'}, {L"&quot;", L'"'}, {L"&apos;", L'\''}};
    wchar_t open[64], close[64], *out = into;
    swprintf(open, COUNT(open), L"<%ls>", which);
    swprintf(close, COUNT(close), L"</%ls>", which);
    const wchar_t *at = wcsstr(document, open), *end = at ? wcsstr(at, close) : NULL;
    *into = 0;
    if (!end) return 0;
    if (wcsstr(end, open)) not_here(L"a task with more than one action");
    for (at += wcslen(open); at < end && out < into + ROOM - 1; ) {
        size_t each = 0;
        while (each < COUNT(known) && wcsncmp(at, known[each].written, wcslen(known[each].written))) each++;
        if (each < COUNT(known)) {
            *out++ = known[each].means;
            at += wcslen(known[each].written);
        } else if (!wcsncmp(at, L"&#", 2)) {
            wchar_t *after;
            *out++ = (wchar_t)(at[2] == L'x' ? wcstoul(at + 3, &after, 16) : wcstoul(at + 2, &after, 10));
            at = after + 1;
        } else *out++ = *at++;
    }
    *out = 0;
    return 1;
}

static int create(void)
{
    static wchar_t action[ROOM], arguments[ROOM], account[ROOM], path[1024];
    _snwprintf(path, COUNT(path) - 1, TREE L"\\%ls", name);
    HKEY there = NULL;
    if (!RegOpenKeyExW(HKEY_LOCAL_MACHINE, path, 0, KEY_READ, &there) && !force) {
        say(STD_ERROR_HANDLE, L"ERROR: The task \"%ls\" already exists (lab: say /F).", name);
        return 1;
    }
    if (xml && !command) {
        wchar_t *document = read_file(xml);
        int none = wcsstr(document, L"<Triggers/>") || wcsstr(document, L"<Triggers />");
        if (!none && wcsstr(document, L"<Triggers"))
            not_here(L"a task with a trigger");
        if (!element(document, L"Command", action)) not_here(L"a task without an Exec");
        element(document, L"Arguments", arguments);
        element(document, L"UserId", account);
        CreateDirectoryW(FILES, NULL);
        _snwprintf(path, COUNT(path) - 1, FILES L"\\%ls", name);
        if (!CopyFileW(xml, path, FALSE)) broken(path);
    } else if (command && !xml) {
        if (!schedule || !same(schedule, L"ONCE")) not_here(L"/Create /TR but with /SC ONCE");
        wcsncpy(action, command, ROOM - 1);
    } else not_here(L"/Create but with one of /XML and /TR");
    HKEY at = task(1);
    set_text(at, L"LabCommand", action);
    set_text(at, L"LabArguments", arguments);
    set_text(at, L"LabUser", user ? user : account);
    set_number(at, L"LabResult", NEVER_RAN);
    say(STD_OUTPUT_HANDLE, L"SUCCESS: The scheduled task \"%ls\" has successfully been created.", name);
    return 0;
}

/* The process of a running task: see the head. */
static int run_here(void)
{
    static wchar_t action[ROOM], arguments[ROOM], line[2 * ROOM + 8];
    STARTUPINFOW start = {.cb = sizeof start};
    PROCESS_INFORMATION process;
    DWORD code;
    HANDLE mutex = CreateMutexW(NULL, TRUE, named(L""));
    HANDLE begun = OpenEventW(EVENT_MODIFY_STATE, FALSE, named(L"-begun"));
    if (!mutex || !begun) broken(L"a running task's names");
    HKEY at = task(0);
    text(at, L"LabCommand", action, sizeof action);
    text(at, L"LabArguments", arguments, sizeof arguments);
    swprintf(line, COUNT(line), *arguments ? L"%ls %ls" : L"%ls", action, arguments);
    set_number(at, L"LabResult", RUNNING);
    const wchar_t *folder = L"C:\\Windows\\System32";
    if (CreateProcessW(NULL, line, NULL, NULL, FALSE, CREATE_NO_WINDOW, NULL, folder, &start, &process)) {
        set_number(at, L"LabPid", process.dwProcessId);
        SetEvent(begun);
        WaitForSingleObject(process.hProcess, INFINITE);
        GetExitCodeProcess(process.hProcess, &code);
    } else {
        code = 0x80070000 | GetLastError();
        SetEvent(begun);
    }
    /* It may have been deleted meanwhile. */
    RegDeleteValueW(at, L"LabPid");
    if (number(at, L"LabResult", 0) == RUNNING) set_number(at, L"LabResult", code);
    return 0;
}

static int run(void)
{
    wchar_t line[512];
    STARTUPINFOW start = {.cb = sizeof start};
    PROCESS_INFORMATION process;
    task(0);
    if (runs()) {
        say(STD_OUTPUT_HANDLE, L"INFO: scheduled task \"%ls\" is currently running.", name);
        return 0;
    }
    HANDLE begun = CreateEventW(NULL, TRUE, FALSE, named(L"-begun"));
    swprintf(line, COUNT(line), L"C:\\windows\\system32\\schtasks.exe /lab-run \"%ls\"", name);
    DWORD how = DETACHED_PROCESS | CREATE_BREAKAWAY_FROM_JOB;
    if (!begun || !CreateProcessW(NULL, line, NULL, NULL, FALSE, how, NULL, NULL, &start, &process))
        broken(L"a task's process");
    HANDLE either[] = {begun, process.hProcess};
    if (WaitForMultipleObjects(2, either, FALSE, 60000) == WAIT_TIMEOUT) broken(L"a task that does not begin");
    say(STD_OUTPUT_HANDLE, L"SUCCESS: Attempted to run the scheduled task \"%ls\".", name);
    return 0;
}

/* As Windows: the task's own process, and none that it started. */
static int end(void)
{
    HKEY at = task(0);
    DWORD id = number(at, L"LabPid", 0);
    if (runs() && id) {
        HANDLE process = OpenProcess(PROCESS_TERMINATE | SYNCHRONIZE, FALSE, id);
        set_number(at, L"LabResult", ENDED);
        if (process) {
            TerminateProcess(process, ENDED);
            WaitForSingleObject(process, 10000);
        }
    }
    say(STD_OUTPUT_HANDLE, L"SUCCESS: The scheduled task \"%ls\" has been terminated successfully.", name);
    return 0;
}

static int delete(void)
{
    wchar_t path[1024];
    if (!force) not_here(L"/Delete without /F");
    task(0);
    _snwprintf(path, COUNT(path) - 1, FILES L"\\%ls", name);
    DeleteFileW(path);
    HKEY tree = key(TREE, 1);
    if (RegDeleteTreeW(tree, name)) broken(L"a task's key");
    say(STD_OUTPUT_HANDLE, L"SUCCESS: The scheduled task \"%ls\" was successfully deleted.", name);
    return 0;
}

static void show(void)
{
    HKEY at = task(0);
    say(STD_OUTPUT_HANDLE, L"TaskName:      \\%ls", name);
    say(STD_OUTPUT_HANDLE, L"Status:        %ls", runs() ? L"Running" : L"Ready");
    say(STD_OUTPUT_HANDLE, L"Last Result:   %lu", number(at, L"LabResult", NEVER_RAN));
    RegCloseKey(at);
}

static int query(void)
{
    static wchar_t found[300];
    DWORD size;
    if (name) {
        show();
        return 0;
    }
    HKEY tree = key(TREE, 1);
    name = found;
    for (DWORD each = 0;; each++) {
        size = COUNT(found) - 1;
        if (RegEnumKeyExW(tree, each, found, &size, NULL, NULL, NULL, NULL)) break;
        show();
    }
    return 0;
}

int wmain(int count, wchar_t **words)
{
    int (*act)(void) = NULL;
    for (int each = 1; each < count; each++) {
        wchar_t *word = words[each], *value = each + 1 < count ? words[each + 1] : L"";
        if (same(word, L"/create")) act = create;
        else if (same(word, L"/run")) act = run;
        else if (same(word, L"/end")) act = end;
        else if (same(word, L"/delete")) act = delete;
        else if (same(word, L"/query")) act = query;
        else if (same(word, L"/lab-run")) act = run_here, name = value, each++;
        else if (same(word, L"/tn")) name = *value == L'\\' ? value + 1 : value, each++;
        else if (same(word, L"/xml")) xml = value, each++;
        else if (same(word, L"/tr")) command = value, each++;
        else if (same(word, L"/sc")) schedule = value, each++;
        else if (same(word, L"/ru")) user = value, each++;
        else if (same(word, L"/st") || same(word, L"/rp") || same(word, L"/rl")) each++;
        else if (same(word, L"/f")) force = 1;
        else not_here(word);
    }
    if (!act) not_here(L"schtasks.exe without an act");
    if (act != query && (!name || !*name)) not_here(L"schtasks.exe without /TN");
    if (name && (wcschr(name, L'\\') || wcslen(name) > 200)) not_here(L"a task in a folder");
    return act();
}
