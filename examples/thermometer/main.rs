//! A thermometer that is not there: prints a plausible temperature at a steady pace until it is asked to stop.
//!
//! It stands for the smallest useful edge workload. Only the standard library, one file, linked statically, so that
//! `kedge up --demo` can build its image without a registry. It reads
//!
//! * `THERMOMETER_UNIT` (`celsius` or `fahrenheit`) and `THERMOMETER_INTERVAL_MS` from a config map,
//! * `/etc/thermometer/token` from a secret, of which it prints only the length.

use std::time::Duration;
use std::{env, fs, process, thread};

const TOKEN_FILE: &str = "/etc/thermometer/token";
const INTERVAL_MS_MIN: u64 = 10;
const SIGTERM: i32 = 15;

unsafe extern "C" {
    fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
    fn _exit(code: i32) -> !;
}

/// The first process of a container ignores signals that it does not handle.
extern "C" fn stop(_number: i32) {
    // SAFETY: _exit may be called from a signal handler.
    unsafe { _exit(0) }
}

fn main() {
    // SAFETY: the handler only calls an async-signal-safe function.
    unsafe { signal(SIGTERM, stop) };
    let fahrenheit = match env::var("THERMOMETER_UNIT").as_deref() {
        Ok("celsius") | Err(_) => false,
        Ok("fahrenheit") => true,
        Ok(other) => refuse(&format!("THERMOMETER_UNIT is {other:?}; celsius or fahrenheit is expected")),
    };
    let interval_ms = match env::var("THERMOMETER_INTERVAL_MS").map(|text| text.parse::<u64>()) {
        Err(_) => 1000,
        Ok(Ok(ms)) => ms.max(INTERVAL_MS_MIN),
        Ok(Err(_)) => refuse("THERMOMETER_INTERVAL_MS is not a number of milliseconds"),
    };
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match fs::read_to_string(TOKEN_FILE) {
        Ok(token) => println!("{} begins, token of {} characters", host.trim(), token.trim().len()),
        Err(error) => println!("{} begins without a token: {error}", host.trim()),
    }
    for reading in 0_u32.. {
        let celsius = temperature(reading);
        if fahrenheit {
            println!("reading {reading}: {:.1} °F", celsius * 9.0 / 5.0 + 32.0);
        } else {
            println!("reading {reading}: {celsius:.1} °C");
        }
        thread::sleep(Duration::from_millis(interval_ms));
    }
}

/// A slow wave around 21 °C with a little noise.
fn temperature(reading: u32) -> f64 {
    let noise = f64::from(reading.wrapping_mul(2_654_435_761) >> 24) / 256.0 - 0.5;
    21.0 + 3.0 * (f64::from(reading) / 40.0).sin() + noise / 2.0
}

fn refuse(reason: &str) -> ! {
    eprintln!("thermometer: {reason}");
    process::exit(2)
}
