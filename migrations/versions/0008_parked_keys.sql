-- Each scrape and each look at the status counts the parked keys. A key has one letter that failed, however many wait
-- behind it; those that are to be tried again are found by dead_letters_due.
create index dead_letters_failed on headwater.dead_letters (projection, generation) where error is not null;
