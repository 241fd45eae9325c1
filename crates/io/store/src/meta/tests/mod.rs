mod contract;
mod damage;
mod disk;
mod file;
mod kill;
mod official;
mod secrets;
mod twins;
