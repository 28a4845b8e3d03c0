-- Tombstones are kept for a time. Whoever comes back from before that is not told what is gone: he is told that he has to
-- start again, so it must be known up to where removals are forgotten.
alter table headwater.projections add column forgotten bigint not null default 0;
comment on column headwater.projections.forgotten is
  'Up to here removals are forgotten, their tombstones pruned: a cursor from before it misses some of them.';
