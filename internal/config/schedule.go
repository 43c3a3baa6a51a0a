package config

import (
	"fmt"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

// NextExpectedBy is when the next backup of a chain is late if one begins at
// now: at the second scheduled time from then, so that one missed run is not
// an alarm yet. Nil means that none is scheduled.
func (c *Config) NextExpectedBy(chain string, now time.Time) *time.Time {
	expression := ""
	switch {
	case chain == "etcd/imported": // by hand, whenever
	case strings.HasPrefix(chain, "etcd/"):
		expression = c.Schedule.Full
	case strings.HasPrefix(chain, "hosts/"):
		expression = c.Schedule.Files
	}
	schedule, err := cron.ParseStandard(expression)
	if err != nil { // check has refused all but the empty one
		return nil
	}
	next := schedule.Next(schedule.Next(now.UTC())).UTC().Truncate(time.Millisecond)
	if next.IsZero() {
		return nil // a date that never comes, such as the 30th of February
	}
	return &next
}

// check reports the first expression that cron would not understand.
func (s Schedule) check(complain func(string, string, ...any) error) error {
	for _, e := range []struct{ key, expression string }{
		{"full", s.Full}, {"files", s.Files}, {"verify", s.Verify}, {"prune", s.Prune}, {"drill", s.Drill},
	} {
		if e.expression == "" {
			continue
		}
		if _, err := cron.ParseStandard(e.expression); err != nil {
			return complain("schedule."+e.key, "%q: want minute, hour, day, month and weekday, such as \"0 */6 * * *\", or @every 6h: %v", e.expression, err)
		}
	}
	return nil
}

// checkRecipients refuses what is surely not a public key. Whether the rest
// are any is for the package that seals.
func checkRecipients(recipients []string, complain func(string, string, ...any) error) error {
	for i, r := range recipients {
		path := fmt.Sprintf("recipients.%d", i)
		switch {
		case strings.TrimSpace(r) == "":
			return complain(path, "is empty; remove the line")
		case strings.Contains(strings.ToUpper(r), "AGE-SECRET-KEY-") || strings.Contains(r, "PRIVATE KEY"):
			return complain(path, "is a private key; write its public key (age-keygen -y), and replace the key, since others have seen it")
		}
	}
	return nil
}
