//! What goes, of what was found. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use kiln_build::run_dir::RunId;

use super::find::{ArtifactFile, Found, ago};
use super::{ACTIVITY_DAYS, GcItem, GcPlan, GcWhat, OPERATION_DAYS, Places, Retention};
use crate::store::ArtifactAge;

const DAY: i64 = 24 * 3600 * 1_000_000;

pub(super) fn decide(found: &Found, places: &Places, retention: &Retention, now: Timestamp) -> GcPlan {
    let deciding = Deciding::new(found, places, retention, now);
    let reasons = deciding.runs_that_go();
    let mut items = Vec::new();
    for (run, reason) in &reasons.going {
        deciding.add_run(run, reason, &mut items);
    }
    deciding.add_artifacts_of_forgotten_runs(&reasons.going, &mut items);
    deciding.add_work_folders(&reasons.going, &mut items);
    deciding.add_inputs(&mut items);
    deciding.add_logs(&mut items);
    for (path, bytes) in &found.leftovers {
        let reason = "an earlier removal did not finish".to_owned();
        items.push(GcItem { what: GcWhat::Leftover, path: Some(path.clone()), bytes: *bytes, reason });
    }
    GcPlan {
        items,
        bytes_used: deciding.used,
        bytes_over_quota: reasons.over_quota,
        now,
        retention: *retention,
    }
}

struct Deciding<'a> {
    found: &'a Found,
    places: &'a Places,
    retention: &'a Retention,
    now: Timestamp,
    artifacts: HashMap<&'a RunId, Vec<&'a ArtifactAge>>,
    /// What has a row, and when it ended.
    ended: HashMap<&'a RunId, Option<i64>>,
    /// Bytes of all run directories and artifacts.
    used: u64,
}

struct Reasons {
    /// By time; runs with a row and directories without.
    going: Vec<(RunId, String)>,
    over_quota: u64,
}

impl<'a> Deciding<'a> {
    fn new(found: &'a Found, places: &'a Places, retention: &'a Retention, now: Timestamp) -> Self {
        let mut artifacts: HashMap<&RunId, Vec<&ArtifactAge>> = HashMap::new();
        for artifact in &found.rows.artifacts {
            artifacts.entry(&artifact.run).or_default().push(artifact);
        }
        let directories = found.directories.values().map(|folder| folder.bytes);
        let files = found.files.values().flatten().map(|file| file.bytes);
        Self {
            ended: found.rows.runs.iter().map(|run| (&run.run, run.ended)).collect(),
            used: directories.chain(files).sum(),
            found,
            places,
            retention,
            now,
            artifacts,
        }
    }

    /// Runs that may go, the oldest end first: with a row and ended, or a directory without a row. Nobody holds them.
    fn candidates(&self) -> Vec<(i64, &'a RunId)> {
        let is_held = |run: &RunId| self.found.directories.get(run).is_some_and(|folder| folder.is_held);
        let known = self.found.rows.runs.iter().filter_map(|run| Some((run.ended?, &run.run)));
        let unknown = self.found.directories.iter().filter(|(run, _)| !self.ended.contains_key(run));
        let unknown = unknown.map(|(run, folder)| (folder.changed, run));
        let mut candidates: Vec<_> = known.chain(unknown).filter(|(_, run)| !is_held(run)).collect();
        candidates.sort();
        candidates
    }

    fn runs_that_go(&self) -> Reasons {
        let Retention { days, per_template, size_gib } = *self.retention;
        let beyond = self.beyond_per_template();
        let oldest = ago(self.now, days.into());
        let (mut going, mut staying) = (Vec::new(), Vec::new());
        for (ended, run) in self.candidates() {
            let age = (self.now.as_microsecond() - ended) / DAY;
            if ended < oldest {
                let kept = count(days.into(), "day");
                going.push((
                    run.clone(),
                    format!("ended {} ago; runs are kept for {kept}", count(age, "day")),
                ));
            } else if beyond.contains(run) {
                let kept = count(per_template.into(), "run");
                going.push((run.clone(), format!("its template has newer ones; it keeps {kept}")));
            } else {
                staying.push(run);
            }
        }
        let mut over_quota = 0;
        if let Some(gib) = size_gib {
            let freed: u64 = going.iter().map(|(run, _)| self.bytes_of(run)).sum();
            let quota = gib.saturating_mul(1 << 30);
            let mut left = self.used.saturating_sub(freed);
            for run in staying {
                let bytes = self.bytes_of(run);
                if left <= quota {
                    break;
                }
                if bytes > 0 {
                    left -= bytes.min(left);
                    going.push((run.clone(), format!("runs and artifacts take more than {gib} GiB")));
                }
            }
            over_quota = left.saturating_sub(quota);
        }
        Reasons { going, over_quota }
    }

    fn beyond_per_template(&self) -> HashSet<&'a RunId> {
        let mut seen: HashMap<&str, u32> = HashMap::new();
        let mut beyond = HashSet::new();
        for run in self.found.rows.runs.iter().rev().filter(|run| run.ended.is_some()) {
            let seen = seen.entry(&run.template).or_default();
            *seen += 1;
            if *seen > self.retention.per_template {
                beyond.insert(&run.run);
            }
        }
        beyond
    }

    /// What going would free.
    fn bytes_of(&self, run: &RunId) -> u64 {
        let mut items = Vec::new();
        self.add_run(run, "", &mut items);
        items.iter().map(|item| item.bytes).sum()
    }

    /// A run with all of its files but those of run outputs; the files come first.
    fn add_run(&self, run: &RunId, reason: &str, items: &mut Vec<GcItem>) {
        self.add_files(run, items, |_| Some(reason.to_owned()));
        let what = match self.ended.contains_key(run) {
            true => GcWhat::Run { run: run.clone() },
            false => GcWhat::RunDirectory { run: run.clone() },
        };
        let folder = self.found.directories.get(run);
        items.push(GcItem {
            what,
            path: folder.map(|_| self.places.runs.join(run.as_str())),
            bytes: folder.map_or(0, |folder| folder.bytes),
            reason: reason.to_owned(),
        });
    }

    /// The artifacts of a run but those that are run outputs, and the files that belong to none. `reason` gets the time of
    /// each and says why it goes.
    fn add_files(&self, run: &RunId, items: &mut Vec<GcItem>, reason: impl Fn(i64) -> Option<String>) {
        let mut files: BTreeMap<&str, &ArtifactFile> =
            self.found.files.get(run).into_iter().flatten().map(|file| (file.name.as_str(), file)).collect();
        let folder = self.places.artifacts.join(run.as_str());
        for artifact in self.artifacts.get(run).into_iter().flatten() {
            let record = record_of(&artifact.file);
            let own = [files.remove(artifact.file.as_str()), files.remove(record.as_str())];
            if artifact.is_output {
                continue;
            }
            let Some(reason) = reason(artifact.created) else { continue };
            items.push(GcItem {
                what: GcWhat::Artifact { run: run.clone(), file: artifact.file.clone() },
                path: Some(folder.join(&artifact.file)),
                bytes: own.iter().flatten().map(|file| file.bytes).sum(),
                reason,
            });
        }
        for (name, file) in files {
            let Some(reason) = reason(file.changed) else { continue };
            items.push(GcItem {
                what: GcWhat::ArtifactFile { run: run.clone(), file: name.to_owned() },
                path: Some(folder.join(name)),
                bytes: file.bytes,
                reason,
            });
        }
    }

    /// Artifacts whose run is not known any more: it went, and they stayed as run outputs of their template, once.
    fn add_artifacts_of_forgotten_runs(&self, going: &[(RunId, String)], items: &mut Vec<GcItem>) {
        let going: HashSet<&RunId> = going.iter().map(|(run, _)| run).collect();
        let runs: BTreeSet<&RunId> = self.artifacts.keys().copied().chain(self.found.files.keys()).collect();
        let oldest = ago(self.now, self.retention.days.into());
        for run in runs {
            let is_held = self.found.directories.get(run).is_some_and(|folder| folder.is_held);
            if self.ended.contains_key(run) || going.contains(run) || is_held {
                continue;
            }
            self.add_files(run, items, |time| {
                let kept = count(self.retention.days.into(), "day");
                (time < oldest).then(|| format!("its run is gone; artifacts are kept for {kept}"))
            });
        }
    }

    fn add_work_folders(&self, going: &[(RunId, String)], items: &mut Vec<GcItem>) {
        let going: HashSet<&RunId> = going.iter().map(|(run, _)| run).collect();
        for (run, folder) in &self.found.directories {
            let ended = self.ended.get(run).is_some_and(Option::is_some);
            let Some(bytes) = folder.work else { continue };
            if ended && !folder.is_held && !going.contains(run) {
                items.push(GcItem {
                    what: GcWhat::WorkFolder { run: run.clone() },
                    path: Some(self.places.runs.join(run.as_str()).join("work")),
                    bytes,
                    reason: "its run has ended".to_owned(),
                });
            }
        }
    }

    fn add_inputs(&self, items: &mut Vec<GcItem>) {
        let days = i64::from(self.retention.days).max(1);
        let oldest = wanted_before(self.now, self.retention);
        for input in &self.found.inputs {
            let needed = self.found.rows.copies.contains(&input.sha256)
                || self.found.inputs_of_runs.contains(&input.sha256);
            if !needed && input.last_wanted < oldest {
                items.push(GcItem {
                    what: GcWhat::Input { sha256: input.sha256 },
                    path: None,
                    bytes: input.size,
                    reason: format!("nobody wanted it for {}", count(days, "day")),
                });
            }
        }
    }

    fn add_logs(&self, items: &mut Vec<GcItem>) {
        let rows = &self.found.rows;
        let logs = [
            (rows.old_operations, GcWhat::Operations { count: rows.old_operations }, OPERATION_DAYS),
            (rows.old_activity, GcWhat::Activity { count: rows.old_activity }, ACTIVITY_DAYS),
        ];
        for (_, what, days) in logs.into_iter().filter(|(rows, ..)| *rows > 0) {
            let reason = format!("kept for {}", count(days, "day"));
            items.push(GcItem { what, path: None, bytes: 0, reason });
        }
    }
}

/// Inputs last wanted before this go. A day is more than any run takes.
pub(super) fn wanted_before(now: Timestamp, retention: &Retention) -> SystemTime {
    let micros = ago(now, i64::from(retention.days).max(1));
    SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

/// The run output beside an artifact: `NAME.json`.
pub(super) fn record_of(file: &str) -> String {
    format!("{}.json", file.rsplit_once('.').map_or(file, |(name, _)| name))
}

fn count(n: i64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}
