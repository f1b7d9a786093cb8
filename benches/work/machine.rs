//! What a measurement was taken on.

use std::path::Path;

/// The processor, the system, the file system of `dir`, and SQLite.
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub kernel: String,
    pub file_system: String,
    pub sqlite: &'static str,
}

const UNKNOWN: &str = "unknown";

impl Machine {
    pub fn of(dir: &Path) -> Self {
        Self {
            cpu: cpu().unwrap_or_else(|| UNKNOWN.into()),
            cores: std::thread::available_parallelism().map_or(0, Into::into),
            kernel: kernel(),
            file_system: file_system(dir).unwrap_or_else(|| UNKNOWN.into()),
            sqlite: rusqlite::version(),
        }
    }

    pub fn json(&self) -> serde_json::Value {
        let Self { cpu, cores, kernel, file_system, sqlite } = self;
        serde_json::json!({
            "cpu": cpu, "cores": cores, "kernel": kernel, "file_system": file_system,
            "sqlite": sqlite,
        })
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { cpu, cores, kernel, file_system, sqlite } = self;
        write!(f, "{cpu}, {cores} cores; {kernel}; {file_system}; SQLite {sqlite}")
    }
}

fn cpu() -> Option<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let field = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name))?;
        line.split_once(':').map(|(_, value)| value.trim().to_owned())
    };
    let (name, family, model) = (field("model name")?, field("cpu family")?, field("model\t")?);
    Some(format!("{name} (family {family}, model {model})"))
}

/// Without what a distributor or provider of machines adds to the version.
fn kernel() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version = release.trim().split('-').next().unwrap_or_default().to_owned();
    format!("{} {version}", std::env::consts::OS)
}

/// The type of the file system that is mounted deepest above `dir`.
fn file_system(dir: &Path) -> Option<String> {
    let dir = dir.canonicalize().ok()?;
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    let above = mounts.filter(|(at, _)| dir.starts_with(at));
    above.max_by_key(|(at, _)| at.len()).map(|(_, kind)| kind.to_owned())
}
