package config

import (
	"fmt"
	"strings"
	"time"

	"lifeboat/internal/schedule"
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
	s, err := schedule.Parse(expression)
	if err != nil { // check has refused it
		return nil
	}
	next := s.Next(now)
	if next.IsZero() {
		return nil // none, or a date that never comes, such as the 30th of February
	}
	if next = s.Next(next); next.IsZero() {
		return nil
	}
	next = next.Truncate(time.Millisecond)
	return &next
}

// check reports the first expression that cron would not understand.
func (s Schedule) check(complain func(string, string, ...any) error) error {
	for _, e := range []struct{ key, expression string }{
		{"full", s.Full}, {"files", s.Files}, {"verify", s.Verify}, {"prune", s.Prune}, {"drill", s.Drill},
	} {
		if _, err := schedule.Parse(e.expression); err != nil {
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
