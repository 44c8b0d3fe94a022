# Around the entries of a PowerShell customizer's `inline`; these comments and the two marks are replaced.
# The error is shown as PowerShell shows it; the exit code is what the service's is.
if (Test-Path variable:global:ProgressPreference) { $global:ProgressPreference = 'SilentlyContinue' }
# <environment>
try {
# <entries>
} catch {
    Write-Error -ErrorRecord $_ -ErrorAction Continue
    exit 1
}
if ((Test-Path variable:global:LASTEXITCODE) -and $LASTEXITCODE -ne 0) { exit $LASTEXITCODE }
