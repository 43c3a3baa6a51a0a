package metrics

import (
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// family is one metric's name, meaning and labels. Every family has the labels
// cluster and node before its own.
type family struct {
	name, help string
	kind       string // gauge, counter or histogram
	labels     []string
	desc       *prometheus.Desc
}

// families are all, in the order of their declaration. docs/alerts.md lists
// them; a test compares.
var families []*family

func declare(kind, name, help string, labels ...string) *family {
	all := slices.Concat([]string{"cluster", "node"}, labels)
	f := &family{name, help, kind, labels, prometheus.NewDesc(name, help, all, nil)}
	families = append(families, f)
	return f
}

func gauge(name, help string, labels ...string) *family {
	return declare("gauge", name, help, labels...)
}

func counter(name, help string, labels ...string) *family {
	return declare("counter", name, help, labels...)
}

func (f *family) valueType() prometheus.ValueType {
	if f.kind == "counter" {
		return prometheus.CounterValue
	}
	return prometheus.GaugeValue
}

// About the agent itself.
var (
	agentInfo    = gauge("lifeboat_agent_info", "1; the labels say which lifeboat runs where.", "version")
	agentStarted = gauge("lifeboat_agent_start_timestamp_seconds", "When the agent started.")
	agentLoaded  = gauge("lifeboat_agent_loaded", "1 once the agent asked every store; before that it exports nothing of their contents.")
	clockNow     = gauge("lifeboat_agent_clock_timestamp_seconds", "The agent's wall clock.")
	problems     = gauge("lifeboat_problems", "Problems on the status page.", "severity")
	reloaded     = gauge("lifeboat_config_reload_success_timestamp_seconds", "When a configuration was last taken.")
	reloadedWell = gauge("lifeboat_config_reload_successful", "1 if the last configuration offered was taken, 0 if it was refused.")
	certificate  = gauge("lifeboat_certificate_expiry_timestamp_seconds", "When a certificate of the node ends.", "name", "ca")
	warnings     = counter("lifeboat_warnings_total", "Things that a person should know and that stopped nothing; the log has them.")
	pings        = counter("lifeboat_deadman_pings_total", "Requests of the dead-man URL. None are sent while backups are late.", "result")
	lastPing     = gauge("lifeboat_deadman_last_success_timestamp_seconds", "When the dead-man service last answered well; 0: not since the start.")
	omitted      = gauge("lifeboat_omitted_series", "Chains and certificates left out because there are more than this exporter shows.")
)

// About jobs.
var (
	interval       = gauge("lifeboat_schedule_interval_seconds", "The longest time between two scheduled runs. Absent: none is scheduled by this agent.", "kind", "chain")
	due            = gauge("lifeboat_schedule_due_timestamp_seconds", "When this agent serves the job next. Absent: not by this agent.", "kind", "chain")
	running        = gauge("lifeboat_job_running", "1 while the job runs.", "kind", "chain")
	lastAttempt    = gauge("lifeboat_backup_last_attempt_timestamp_seconds", "When this agent last began a run of the job; 0: none that it remembers.", "kind", "chain")
	lastDuration   = gauge("lifeboat_backup_last_duration_seconds", "How long this agent's newest successful run of the job took. Absent: none that it remembers.", "kind", "chain")
	attempts       = counter("lifeboat_backup_attempts_total", "Runs of jobs that are over.", "kind", "chain", "result", "reason")
	verified       = gauge("lifeboat_verify_last_success_timestamp_seconds", "When this agent last began a verification that found nothing wrong; 0: none that it remembers.", "level")
	pruned         = gauge("lifeboat_prune_last_success_timestamp_seconds", "When this agent last began a pruning that succeeded; 0: none that it remembers. One agent prunes for all. Absent: no pruning is scheduled.")
	hashMismatches = counter("lifeboat_hashkv_mismatch_total", "etcd members whose HashKV differed from the majority's.", "chain")
	drilled        = gauge("lifeboat_drill_last_success_timestamp_seconds", "When this agent last restored into a sandbox; 0: never that it remembers. Absent: no drills are scheduled.", "scenario")
	drillRTO       = gauge("lifeboat_drill_rto_seconds", "How long the newest successful drill took.", "scenario")
	stageDuration  = declare("histogram", "lifeboat_backup_stage_duration_seconds", "Duration of the stages of backups and verifications.", "stage")
)

// About recorders.
var (
	recorderActive   = gauge("lifeboat_recorder_active", "1 while this agent records the changes of etcd; 0 while it stands by or fails. Absent: recording is turned off.", "chain")
	recorderRevision = gauge("lifeboat_recorder_revision", "Revision up to which this agent has recorded all changes on its disk.", "chain")
	recorderRecorded = gauge("lifeboat_recorder_recorded_timestamp_seconds", "All that etcd acknowledged until then is on this agent's disk or in a store: how far the recorder lags behind etcd; 0: not known.", "chain")
	recorderPoint    = gauge("lifeboat_recorder_recovery_point_timestamp_seconds", "All that etcd acknowledged until then can be restored from the store, by what this agent knows; 0: not known.", "chain", "store")
	recorderEpoch    = gauge("lifeboat_recorder_epoch", "Epoch of the history that is recorded in the store; 0: not known.", "chain", "store")
	recorderBehind   = gauge("lifeboat_recorder_behind_bytes", "Bytes of the spool that the store does not have yet.", "chain", "store")
	recorderSpool    = gauge("lifeboat_recorder_spool_bytes", "Bytes of the spool on this agent's disk.", "chain")
	recorderLimit    = gauge("lifeboat_recorder_spool_limit_bytes", "Bytes that the spool may have, as configured.", "chain")
	recorderWanted   = gauge("lifeboat_recorder_full_wanted", "1 while the recorder asks for a full backup.", "chain")
	recorderGaps     = counter("lifeboat_recorder_gaps_total", "Gaps in the history of a store that this agent found: no time in them can be restored.", "chain")
	recorderSegments = counter("lifeboat_recorder_segments_total", "Segments that this agent committed to the store; rollup: those that replace many.", "chain", "store", "kind")
)

// About what the stores hold.
var (
	recoveryPoint = gauge("lifeboat_recovery_point_timestamp_seconds", "The state that a restore of the latest backup gives back, without the changes recorded since, over all stores; 0: there is none.", "chain")
	lastSuccess   = gauge("lifeboat_backup_last_success_timestamp_seconds", "Capture time of the newest backup; 0: there is none.", "chain", "store")
	lastWhole     = gauge("lifeboat_backup_last_whole_timestamp_seconds", "Capture time of the newest backup that is not degraded; 0: there is none.", "chain", "store")
	lastProved    = gauge("lifeboat_backup_last_proved_timestamp_seconds", "Capture time of the newest full that was compared with the members; 0: there is none.", "chain", "store")
	headSequence  = gauge("lifeboat_chain_head_sequence", "Number of the chain's newest manifest; 0: the chain is empty.", "chain", "store")
	chainValid    = gauge("lifeboat_chain_valid", "1 if signatures, links and witnesses are as they must be.", "chain", "store")
	chainRegress  = gauge("lifeboat_chain_regressed", "1 if a manifest seen earlier is gone: the store was rolled back.", "chain", "store")
	chainLate     = gauge("lifeboat_chain_late", "1 if the newest manifest's writer promised the next one for a time that is over.", "chain", "store")
	backups       = gauge("lifeboat_chain_backups", "Backups that can be restored.", "chain", "store")
	chainBytes    = gauge("lifeboat_chain_stored_bytes", "Stored bytes of all backups of the chain.", "chain", "store")
	revision      = gauge("lifeboat_backup_revision", "etcd's revision in the newest full.", "chain", "store")
	keys          = gauge("lifeboat_backup_keys", "Live keys in the newest full; absent where they were not counted, as without scratch.", "chain", "store")
	size          = gauge("lifeboat_backup_size_bytes", "Size of the newest backup: plain as captured, stored after compression and encryption.", "chain", "store", "kind")
	previousSize  = gauge("lifeboat_backup_previous_size_bytes", "Stored size of the backup before the newest. Absent: there is none.", "chain", "store")
	lockedUntil   = gauge("lifeboat_object_lock_until_timestamp_seconds", "Until when Object Lock keeps the newest backup. Absent: it does not.", "chain", "store")
	storeUp       = gauge("lifeboat_store_up", "1 if the store answered when this agent last asked.", "store")
	storeAnswered = gauge("lifeboat_store_answered_timestamp_seconds", "When the store last answered this agent; 0: not since the start.", "store")
	clockSkew     = gauge("lifeboat_clock_skew_seconds", "The store's clock less the node's. Absent: the store does not tell its time.", "store")
	commits       = counter("lifeboat_store_commits_total", "Backups that this agent committed to the store, or failed to.", "chain", "store", "result")
	requests      = counter("lifeboat_storage_requests_total", "Operations on the store by outcome.", "store", "op", "code")
)

// stages bounds the label of stageDuration.
var stages = []string{"snapshot", "prove", "seal", "commit", "verify", "prune", "fetch", "check", "apply", "edit", "install", "write"}

func bounded(word string, among []string) string {
	if slices.Contains(among, word) {
		return word
	}
	return "other"
}

// text makes a label's value valid, whatever it was.
func text(s string) string { return strings.ToValidUTF8(s, "?") }
