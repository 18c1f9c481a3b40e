//! The builds of a day, made from a seed.
//!
//! The shapes are those that published traces of build and batch clusters agree on: many small builds and few very large
//! ones (peaks are log-normal), runs of one thing alike and sometimes not, arrivals by the hour of the day with bursts
//! where somebody rebuilds everything, and requests that are a guess: half of them far too large, some too small, many
//! missing.

use stoker_core::sizing::Language;

/// Who builds here. All have the same weight.
pub(crate) const TENANTS: [&str; 4] = ["desktop", "distro", "services", "nightly"];

pub(crate) const GIB: u64 = 1 << 30;

/// One build.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) tenant: usize,
    /// What is built: runs of the same are alike.
    pub(crate) kind: usize,
    /// Second of the day.
    pub(crate) arrives: u32,
    /// Thousandths of a core that it can make use of.
    pub(crate) cpu_millis: u64,
    /// Milliseconds of one core that it takes in all.
    pub(crate) work_millis: f64,
    /// The most that it uses at one time.
    pub(crate) peak_bytes: u64,
    pub(crate) language: Language,
    /// What its author wrote.
    pub(crate) declared: Option<(u64, u64)>,
}

/// What is built again and again.
struct Kind {
    tenant: usize,
    cpu_millis: u64,
    seconds: f64,
    peak_bytes: f64,
    language: Language,
    declared: Option<(u64, u64)>,
}

pub(crate) struct Workload {
    pub(crate) jobs: Vec<Job>,
    pub(crate) seconds: u32,
}

/// How one tenant's builds look: kinds, cores, median seconds and GiB at the peak, with their spread.
struct Shape {
    kinds: usize,
    cores: [u64; 3],
    seconds: (f64, f64),
    gib: (f64, f64, f64),
    language: Language,
    /// Builds in an hour at night and by day.
    hourly: (f64, f64),
    /// Hours at which so many come at once.
    bursts: &'static [(u32, usize)],
}

const SHAPES: [Shape; 4] = [
    Shape {
        kinds: 30,
        cores: [4, 8, 8],
        seconds: (420.0, 0.7),
        gib: (5.0, 0.6, 24.0),
        language: Language::Rust,
        hourly: (4.0, 22.0),
        bursts: &[],
    },
    Shape {
        kinds: 200,
        cores: [1, 2, 4],
        seconds: (110.0, 0.9),
        gib: (1.1, 0.8, 12.0),
        language: Language::Other,
        hourly: (10.0, 40.0),
        bursts: &[(9, 400), (14, 300)],
    },
    Shape {
        kinds: 40,
        cores: [2, 2, 4],
        seconds: (180.0, 0.6),
        gib: (2.0, 0.5, 10.0),
        language: Language::Go,
        hourly: (6.0, 55.0),
        bursts: &[(17, 60)],
    },
    Shape {
        kinds: 6,
        cores: [8, 16, 16],
        seconds: (1500.0, 0.3),
        gib: (26.0, 0.25, 40.0),
        language: Language::Other,
        hourly: (1.6, 0.4),
        bursts: &[],
    },
];

impl Workload {
    pub(crate) fn of(seed: u64, hours: u32) -> Self {
        let mut chance = Chance(seed);
        let mut jobs = Vec::new();
        for (tenant, shape) in SHAPES.iter().enumerate() {
            let kinds: Vec<Kind> = (0..shape.kinds).map(|_| shape.kind(tenant, &mut chance)).collect();
            for hour in 0..hours {
                let of_day = hour % 24;
                let by_day = (8..20).contains(&of_day);
                let rate = if by_day { shape.hourly.1 } else { shape.hourly.0 };
                let mut at = f64::from(hour) * 3600.0;
                loop {
                    at += chance.exponential(3600.0 / rate);
                    if at >= f64::from(hour + 1) * 3600.0 {
                        break;
                    }
                    jobs.push(job(&kinds, tenant, at, &mut chance));
                }
                for (_, count) in shape.bursts.iter().filter(|(at, _)| *at == of_day) {
                    let begin = f64::from(hour) * 3600.0;
                    jobs.extend(
                        (0..*count).map(|number| job(&kinds, tenant, begin + number as f64 * 0.2, &mut chance)),
                    );
                }
            }
        }
        jobs.sort_by_key(|job| job.arrives);
        Self { jobs, seconds: hours * 3600 }
    }

    /// The builds of one tenant alone.
    pub(crate) fn only(&self, tenant: usize) -> Self {
        Self { jobs: self.jobs.iter().filter(|job| job.tenant == tenant).cloned().collect(), seconds: self.seconds }
    }
}

impl Shape {
    fn kind(&self, tenant: usize, chance: &mut Chance) -> Kind {
        let cores = self.cores[chance.below(3)];
        let (median, spread, most) = self.gib;
        let peak_bytes = chance.log_normal(median, spread).min(most) * GIB as f64;
        let guess = match chance.below(100) {
            0..50 => Some(1.1 + chance.unit() * 1.9),
            50..62 => Some(0.6 + chance.unit() * 0.3),
            _ => None,
        };
        // Nobody declares more than the node has, nor less than a GiB.
        let declared = guess.map(|factor| {
            let gib = (peak_bytes * factor / GIB as f64).ceil().clamp(1.0, 48.0);
            (cores * 1000, gib as u64 * GIB)
        });
        let seconds = chance.log_normal(self.seconds.0, self.seconds.1).clamp(20.0, 5400.0);
        Kind { tenant, cpu_millis: cores * 1000, seconds, peak_bytes, language: self.language, declared }
    }
}

fn job(kinds: &[Kind], tenant: usize, at: f64, chance: &mut Chance) -> Job {
    // A few kinds are most of the builds.
    let number = ((chance.unit().powi(2)) * kinds.len() as f64) as usize;
    let kind = &kinds[number.min(kinds.len() - 1)];
    let odd = if chance.below(200) == 0 { 1.5 } else { 1.0 };
    let peak = kind.peak_bytes * chance.log_normal(1.0, 0.08) * odd;
    let seconds = kind.seconds * chance.log_normal(1.0, 0.2);
    Job {
        tenant: kind.tenant,
        kind: tenant * 1000 + number,
        arrives: at as u32,
        cpu_millis: kind.cpu_millis,
        work_millis: seconds * kind.cpu_millis as f64,
        peak_bytes: peak.min(50.0 * GIB as f64) as u64,
        language: kind.language,
        declared: kind.declared,
    }
}

/// Numbers from a seed, the same on every machine: splitmix64.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// In [0, 1).
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.unit() * bound as f64) as usize
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -(1.0 - self.unit()).ln() * mean
    }

    fn log_normal(&mut self, median: f64, spread: f64) -> f64 {
        let normal = (-2.0 * (1.0 - self.unit()).ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos();
        median * (spread * normal).exp()
    }
}
