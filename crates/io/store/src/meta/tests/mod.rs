mod contract;
mod file;
mod kill;
mod twins;
