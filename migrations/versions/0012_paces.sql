alter table headwater.workers add column paces json not null default '{}';
comment on column headwater.workers.paces is
  'Of what it keeps, by name: events a second since the heartbeat before, events a batch and retries since it started. Told '
  'with the heartbeat, for `headwater status`.';
