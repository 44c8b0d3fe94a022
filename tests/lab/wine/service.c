/* Services, by Wine's own service control manager.
 *
 *   service.exe run SECONDS     the service itself: START_PENDING for so long, then RUNNING until it is stopped
 *   service.exe query NAME      one line, "STATUS STARTTYPE" in PowerShell's words; exit code 1060 when there is none
 *   service.exe start NAME      asks the manager to start it and does not wait, as `sc start`; exit code 0 or the error
 *
 * A service is made by Wine's sc.exe, so what a script sees is a service, not an answer that was written down.
 */
#include "lab.h"

static SERVICE_STATUS_HANDLE told;
static SERVICE_STATUS status = {.dwServiceType = SERVICE_WIN32_OWN_PROCESS, .dwWaitHint = 60000};
static HANDLE stopped;
static DWORD pending;

static void be(DWORD state)
{
    status.dwCurrentState = state;
    status.dwControlsAccepted = state == SERVICE_RUNNING ? SERVICE_ACCEPT_STOP : 0;
    SetServiceStatus(told, &status);
}

static DWORD WINAPI asked(DWORD control, DWORD kind, void *data, void *context)
{
    (void)kind, (void)data, (void)context;
    if (control == SERVICE_CONTROL_STOP) SetEvent(stopped);
    return NO_ERROR;
}

static void WINAPI serve(DWORD count, wchar_t **words)
{
    (void)count;
    told = RegisterServiceCtrlHandlerExW(words[0], asked, NULL);
    be(SERVICE_START_PENDING);
    if (WaitForSingleObject(stopped, pending) == WAIT_TIMEOUT) {
        be(SERVICE_RUNNING);
        WaitForSingleObject(stopped, INFINITE);
    }
    be(SERVICE_STOPPED);
}

static SC_HANDLE open_service(const wchar_t *name, DWORD rights)
{
    SC_HANDLE manager = OpenSCManagerW(NULL, NULL, SC_MANAGER_CONNECT);
    if (!manager) broken(L"the service control manager");
    SC_HANDLE found = OpenServiceW(manager, name, rights);
    if (!found) ExitProcess(GetLastError());
    return found;
}

/* Wine's manager was seen to say ERROR_INTERNAL_ERROR (1359) once, on a busy machine and without a word: its own doing,
 * as far as can be told, perhaps a process that died while it was being made. So it is asked again. */
static DWORD start(SC_HANDLE service)
{
    DWORD error = ERROR_INTERNAL_ERROR;
    for (int asked = 0; asked < 3 && error == ERROR_INTERNAL_ERROR; asked++)
        error = StartServiceW(service, 0, NULL) ? NO_ERROR : GetLastError();
    return error;
}

int wmain(int count, wchar_t **words)
{
    static const wchar_t *const states[] = {
        L"?", L"Stopped", L"StartPending", L"StopPending", L"Running", L"ContinuePending", L"PausePending", L"Paused"};
    static const wchar_t *const starts[] = {L"Boot", L"System", L"Automatic", L"Manual", L"Disabled"};
    static BYTE room[8192];
    QUERY_SERVICE_CONFIGW *config = (QUERY_SERVICE_CONFIGW *)room;
    SERVICE_STATUS now;
    DWORD needed;

    if (count == 3 && same(words[1], L"run")) {
        SERVICE_TABLE_ENTRYW table[] = {{L"", serve}, {NULL, NULL}};
        pending = _wtoi(words[2]) * 1000;
        stopped = CreateEventW(NULL, TRUE, FALSE, NULL);
        return StartServiceCtrlDispatcherW(table) ? 0 : 1;
    }
    if (count == 3 && same(words[1], L"query")) {
        SC_HANDLE service = open_service(words[2], SERVICE_QUERY_STATUS | SERVICE_QUERY_CONFIG);
        if (!QueryServiceStatus(service, &now)) broken(L"a service");
        if (!QueryServiceConfigW(service, config, sizeof room, &needed)) broken(L"a service");
        if (now.dwCurrentState >= COUNT(states) || config->dwStartType >= COUNT(starts)) broken(L"a service's state");
        say(STD_OUTPUT_HANDLE, L"%ls %ls", states[now.dwCurrentState], starts[config->dwStartType]);
        return 0;
    }
    if (count == 3 && same(words[1], L"start")) return (int)start(open_service(words[2], SERVICE_START));
    not_here(L"service.exe but with run, query or start");
    return NOT_HERE;
}
