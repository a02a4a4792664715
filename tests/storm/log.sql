-- What happened, kept by triggers: the checker reads this and not what the product says of itself.
-- The number of a row is taken under the lock of the row that changed: so it orders the changes of one account or run.
CREATE TABLE storm_log (
    id bigserial PRIMARY KEY, who text DEFAULT current_setting('application_name'), account bigint,
    old_status text, new_status text, old_ends timestamptz, new_ends timestamptz,
    old_run bigint, new_run bigint, expired_at timestamptz
);
CREATE TABLE storm_runs (
    id bigserial PRIMARY KEY, run bigint, as_of timestamptz, old_status text, new_status text,
    expired bigint, undone bigint  -- how many more than before
);
CREATE FUNCTION storm_log() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO storm_log (account, old_status, new_status, old_ends, new_ends, old_run, new_run, expired_at)
    VALUES (coalesce(NEW.id, OLD.id), OLD.status, NEW.status, OLD.trial_ends_at, NEW.trial_ends_at,
            OLD.expiry_run_id, NEW.expiry_run_id, NEW.trial_expired_at);
    IF TG_OP = 'UPDATE' THEN PERFORM pg_sleep(0.003); END IF;  -- so that faults land in the middle of slices
    RETURN NULL;
END $$;
CREATE FUNCTION storm_runs() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO storm_runs (run, as_of, old_status, new_status, expired, undone)
    VALUES (NEW.id, NEW.as_of, OLD.status, NEW.status, NEW.expired_count - coalesce(OLD.expired_count, 0),
            NEW.undone_count - coalesce(OLD.undone_count, 0));
    RETURN NULL;
END $$;
CREATE TRIGGER storm AFTER INSERT OR DELETE ON accounts_account FOR EACH ROW EXECUTE FUNCTION storm_log();
CREATE TRIGGER storm_update AFTER UPDATE ON accounts_account FOR EACH ROW
    WHEN ((OLD.status, OLD.trial_ends_at, OLD.expiry_run_id, OLD.trial_expired_at)
        IS DISTINCT FROM (NEW.status, NEW.trial_ends_at, NEW.expiry_run_id, NEW.trial_expired_at))
    EXECUTE FUNCTION storm_log();
CREATE TRIGGER storm AFTER INSERT OR UPDATE ON accounts_expiryrun FOR EACH ROW EXECUTE FUNCTION storm_runs();
