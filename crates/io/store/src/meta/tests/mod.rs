mod contract;
mod file;
mod kill;
